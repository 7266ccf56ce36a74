"""The golden files: they open for ever, and each refused one names the part that is wrong."""

import hashlib
import importlib.util
import io
import json
import struct
from pathlib import Path

import pytest
from blake3 import blake3
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from appliance.errors import IntegrityError
from appliance.store import keyslots
from appliance.store.container import open_records, scrub
from appliance.store.keys import KeyRing, body_public_key, fingerprint_key

VECTORS = Path(__file__).parents[2] / "vectors" / "store"
_SPEC = importlib.util.spec_from_file_location("store_vectors_generate", VECTORS / "generate.py")
generate = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(generate)

INDEX = json.loads((VECTORS / "objects.json").read_text())
DATA_KEY = bytes.fromhex(INDEX["data_key"])


@pytest.mark.parametrize("vector", INDEX["objects"], ids=lambda vector: vector["name"])
def test_a_golden_object_opens_and_scrubs(vector):
    path = VECTORS / f"{vector['name']}.sealed"
    scrub(path, vector["blake3"])
    with open_records(path, DATA_KEY, INDEX["object_id"], vector["blake3"]) as records:
        assert [hashlib.sha256(record).hexdigest() for record in records] == vector["records_sha256"]


@pytest.mark.parametrize("vector", INDEX["refused"], ids=lambda vector: vector["name"])
def test_a_refused_vector_is_refused_with_and_without_the_key(tmp_path, vector):
    original = (VECTORS / f"{vector['object']}.sealed").read_bytes()
    recorded = next(o["blake3"] for o in INDEX["objects"] if o["name"] == vector["object"])
    path = tmp_path / "edited.sealed"
    path.write_bytes(generate.edited(original, vector["edits"]))
    with pytest.raises(IntegrityError) as scrubbed:
        scrub(path, recorded)
    assert scrubbed.value.message.startswith(vector["scrub"] + ":")
    with pytest.raises(IntegrityError) as opened, open_records(path, DATA_KEY, INDEX["object_id"]) as records:
        list(records)
    assert opened.value.message.startswith(vector["open"] + ":")
    assert opened.value.where == str(path)


def test_the_golden_keys_open():
    keys = json.loads((VECTORS / "keys.json").read_text())
    root = keyslots.unlock(VECTORS / "keyslots.json", keys["passphrase"].encode())
    assert (root.store_id, root.buffer.hex()) == (keys["store_id"], keys["root_key"])
    assert fingerprint_key(root).hex() == keys["fingerprint_key"]
    assert body_public_key(root).hex() == keys["body_public_key"]
    data_key = KeyRing(root, VECTORS).unwrap(keys["wrapped"], keys["dataset_id"], keys["epoch"])
    assert data_key.hex() == keys["data_key"]


def test_today_s_writer_still_writes_the_golden_files(tmp_path):
    generate.write_objects(tmp_path)
    generate.write_keys(tmp_path)
    names = {path.name for path in VECTORS.iterdir() if path.suffix in (".json", ".sealed")}
    assert {path.name for path in tmp_path.iterdir()} == names
    for name in names:
        assert (tmp_path / name).read_bytes() == (VECTORS / name).read_bytes(), name


def test_a_reader_written_from_the_specification_alone_reads_a_golden_object():
    """Shares no code with the store, so that the page and the code cannot drift apart together."""
    data = (VECTORS / "record-over-chunk.sealed").read_bytes()
    id_end = 44 + int.from_bytes(data[10:12], "little")
    header, core = data[: id_end + 32], data[:id_end]
    okm = HKDF(hashes.SHA256(), 71, data[12:44], b"appliance/sealed/v1" + core).derive(DATA_KEY)
    assert header[id_end:] == okm[32:64]
    cipher, prefix, bound = AESGCM(okm[:32]), okm[64:], blake3(header).digest()

    stream_bytes = int.from_bytes(data[-72:-64], "little")
    count = -(-stream_bytes // 65536)
    ends = [*range(len(header) + 65552, len(header) + 65552 * count, 65552), len(header) + stream_bytes + 16 * count]
    chunks = [data[start:end] for start, end in zip([len(header), *ends], ends, strict=False)]
    trailer = data[ends[-1] : -64]
    assert trailer == bound + b"".join(blake3(c).digest() for c in chunks) + data[-72:-64]
    assert data[-64:-32] == blake3(trailer).digest()

    little = [i.to_bytes(8, "little") for i in range(count + 1)]
    footer = cipher.decrypt(prefix + little[count][:4] + b"\x01", data[-32:], bound + data[-64:-32])
    plain = [cipher.decrypt(prefix + little[i][:4] + b"\x00", c, bound + little[i]) for i, c in enumerate(chunks)]
    data_bytes, records = struct.unpack("<QQ", footer)
    stream = io.BytesIO(b"".join(plain))
    stream.seek(data_bytes)
    lengths = struct.unpack(f"<{records}I", stream.read())
    stream.seek(0)
    expected = next(o["records_sha256"] for o in INDEX["objects"] if o["name"] == "record-over-chunk")
    assert [hashlib.sha256(stream.read(length)).hexdigest() for length in lengths] == expected
