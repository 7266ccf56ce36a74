"""Writes the test vectors of the store. Run it once per format version: vectors of a release are never changed.

    python tests/vectors/store/generate.py DIRECTORY

Fixed keys, salts and nonces come in through private functions; nothing in the appliance calls those with anything but
fresh randomness.
"""

import hashlib
import json
import sys
from pathlib import Path

from appliance.store.keys import EpochFile, KeyRing, RootKey, body_public_key, fingerprint_key
from appliance.store.keyslots import Argon2Cost, _create
from appliance.store.sealing import _seal_records
from appliance.store.wrapping import _wrap
from appliance.values import to_json

DATA_KEY = bytes(range(32))
SALT = bytes(range(100, 132))
OBJECT_ID = "dataset/example"
PASSPHRASE = "correct horse \u212b battery"  # the Angstrom sign, so that NFKC is exercised
LONG = b"".join(hashlib.sha256(b"%d" % i).digest() for i in range(2200))  # 70,400 bytes, more than a chunk

RECORDS = {
    "no-records": [],
    "one-empty-record": [b""],
    "three-records": [b"first", b"", b"third \xff\x00"],
    "record-over-chunk": [b"short", LONG, b"last"],
}

# name, object, edits, expected beginning of the message. An edit is ["flip", offset, mask], ["cut", bytes from the
# end], ["append", hex] or ["swap", offset, offset, bytes]; negative offsets count from the end.
REFUSED = [
    ("magic", "three-records", [["flip", 0, 1]], "header"),
    ("version", "three-records", [["flip", 8, 2]], "header"),
    ("chunk-size", "three-records", [["flip", 9, 1]], "header"),
    ("salt", "three-records", [["flip", 12, 128]], "header"),
    ("object-id", "three-records", [["flip", 45, 1]], "header"),
    ("commitment", "three-records", [["flip", 60, 1]], "header"),
    ("ciphertext", "three-records", [["flip", 91, 1]], "chunk 0"),
    ("tag-of-chunk", "record-over-chunk", [["flip", 91 + 65536, 1]], "chunk 0"),
    ("second-chunk", "record-over-chunk", [["flip", 91 + 65552, 1]], "chunk 1"),
    ("chunk-digest", "three-records", [["flip", -104, 1]], "trailer"),
    ("stream-length", "three-records", [["flip", -72, 1]], "trailer"),
    ("trailer-digest", "three-records", [["flip", -64, 1]], "trailer"),
    ("footer", "three-records", [["flip", -32, 1]], "footer"),
    ("footer-tag", "no-records", [["flip", -1, 1]], "footer"),
    ("no-footer", "three-records", [["cut", 32]], "trailer"),
    ("one-byte-short", "three-records", [["cut", 1]], "trailer"),
    ("one-byte-long", "three-records", [["append", "00"]], "trailer"),
    ("parts-of-chunks-swapped", "record-over-chunk", [["swap", 91, 91 + 65552, 64]], "chunk 0"),
    ("empty-file", "no-records", [["cut", 10**9]], "trailer"),
]
# A reader meets the index first, and it is in the last chunk.
OPENED = {"parts-of-chunks-swapped": "chunk 1"}


def edited(data: bytes, edits: list) -> bytes:
    """`data` after the edits of one refused vector."""
    out = bytearray(data)
    for edit in edits:
        match edit:
            case ["flip", at, mask]:
                out[at] ^= mask
            case ["cut", size]:
                del out[max(0, len(out) - size) :]
            case ["append", text]:
                out += bytes.fromhex(text)
            case ["swap", a, b, size]:
                out[a : a + size], out[b : b + size] = out[b : b + size], out[a : a + size]
    return bytes(out)


def write_objects(directory: Path) -> None:
    objects = []
    for name, records in RECORDS.items():
        sealed = _seal_records(records, directory / f"{name}.sealed", DATA_KEY, OBJECT_ID, SALT)
        digests = [hashlib.sha256(record).hexdigest() for record in records]
        objects.append({"name": name, "blake3": sealed.blake3, "chunks": sealed.chunks, "records_sha256": digests})
    refused = [{"name": n, "object": o, "edits": e, "scrub": p, "open": OPENED.get(n, p)} for n, o, e, p in REFUSED]
    index = {"data_key": DATA_KEY.hex(), "object_id": OBJECT_ID, "objects": objects, "refused": refused}
    (directory / "objects.json").write_text(json.dumps(index, indent=1) + "\n")


def write_keys(directory: Path) -> None:
    (directory / "keyslots.json").unlink(missing_ok=True)
    cost = Argon2Cost(memory_kib=64, iterations=1, lanes=1)
    root = _create(directory / "keyslots.json", PASSPHRASE.encode(), cost, bytes(range(76)))
    wrapping = root.derive("epoch-wrap")
    wrapped = _wrap(wrapping, ["appliance/epoch-key/v1", root.store_id, 1], bytes(range(32, 64)), bytes(12))
    epoch = EpochFile(schema="appliance.epoch-key/1", store_id=root.store_id, epoch=1, wrapped=wrapped)
    (directory / "epoch-1.json").write_bytes(to_json(epoch))
    data_key = _wrap(
        bytes(range(32, 64)), ["appliance/data-key/v1", root.store_id, "ds-1", 1], DATA_KEY, bytes(range(12))
    )
    (directory / "keys.json").write_text(json.dumps(_expected(directory, root, data_key), indent=1) + "\n")


def _expected(directory: Path, root: RootKey, wrapped: str) -> dict:
    return {
        "passphrase": PASSPHRASE,
        "store_id": root.store_id,
        "root_key": root.buffer.hex(),
        "fingerprint_key": fingerprint_key(root).hex(),
        "body_public_key": body_public_key(root).hex(),
        "dataset_id": "ds-1",
        "epoch": 1,
        "wrapped": wrapped,
        "data_key": KeyRing(root, directory).unwrap(wrapped, "ds-1", 1).hex(),
    }


if __name__ == "__main__":
    write_objects(Path(sys.argv[1]))
    write_keys(Path(sys.argv[1]))
