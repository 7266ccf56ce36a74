"""Whoever can write to the disk but has no key: every alteration is found, and the place is named."""

import os
import random
from pathlib import Path

import pytest

from appliance.errors import ApplianceError, ArtefactMissing, IntegrityError, KeyUnavailable
from appliance.store import keyslots
from appliance.store.container import Sealed, open_bytes, open_records, scrub, seal_bytes, seal_records
from appliance.store.keys import KeyRing
from appliance.store.keyslots import Argon2Cost
from appliance.store.layout import DIGEST, SEALED_CHUNK, SEALED_FOOTER, TAIL

KEY = os.urandom(32)
OBJECT_ID = "ds-1"
HEADER = 44 + len(OBJECT_ID) + 32
RECORDS = [bytes([i % 256]) * (i % 700) for i in range(1000)]  # about 350 kB: six chunks
CHEAP = Argon2Cost(memory_kib=64, iterations=1, lanes=1)


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> tuple[bytes, Sealed]:
    path = tmp_path_factory.mktemp("sealed") / "object"
    sealed = seal_records(RECORDS, path, KEY, OBJECT_ID)
    return path.read_bytes(), sealed


def part_at(offset: int, size: int, chunks: int) -> str:
    """Which part of an object of `size` bytes holds the byte at `offset`, from the specification."""
    if offset < HEADER:
        return "header"
    if offset >= size - SEALED_FOOTER:
        return "footer"
    if offset >= size - TAIL - DIGEST * (chunks + 1):
        return "trailer"
    return f"chunk {(offset - HEADER) // SEALED_CHUNK}"


def scrub_message(path: Path, sealed: Sealed) -> str:
    with pytest.raises(IntegrityError) as caught:
        scrub(path, sealed.blake3)
    assert caught.value.where == str(path)
    return caught.value.message


def open_message(path: Path) -> str:
    """What the opened reader says when it reads everything, without the recorded digest."""
    with pytest.raises(IntegrityError) as caught, open_records(path, KEY, OBJECT_ID) as records:
        list(records)
    assert caught.value.where == str(path)
    return caught.value.message


def test_every_bit_flip_is_found_and_its_place_is_named(tmp_path, original, stress_count):
    data, sealed = original
    generator = random.Random(7)
    interesting = [*range(HEADER), *range(len(data) - TAIL - DIGEST * (sealed.chunks + 1), len(data))]
    chunk_edges = [HEADER + i * SEALED_CHUNK + d for i in range(1, sealed.chunks) for d in (-17, -16, -1, 0, 1)]
    anywhere = [generator.randrange(len(data)) for _ in range(stress_count(400, 10_000))]
    path = tmp_path / "object"
    path.write_bytes(data)
    with path.open("r+b", buffering=0) as file:
        for offset in interesting + chunk_edges + anywhere:
            mask = 1 << generator.randrange(8)
            os.pwrite(file.fileno(), bytes([data[offset] ^ mask]), offset)
            expected = part_at(offset, len(data), sealed.chunks) + ":"
            assert scrub_message(path, sealed).startswith(expected), offset
            assert open_message(path).startswith(expected), offset
            os.pwrite(file.fileno(), data[offset : offset + 1], offset)
    scrub(path, sealed.blake3)


def test_truncation_at_every_edge_is_found(tmp_path, original):
    data, sealed = original
    edges = [HEADER + i * SEALED_CHUNK for i in range(sealed.chunks)]
    trailer = len(data) - TAIL - DIGEST * (sealed.chunks + 1)
    edges += [0, 1, 44, trailer, len(data) - TAIL, len(data) - SEALED_FOOTER, len(data)]
    lengths = {edge + delta for edge in edges for delta in (-1, 0, 1)} & set(range(len(data)))
    path = tmp_path / "object"
    for length in sorted(lengths):
        path.write_bytes(data[:length])
        assert scrub_message(path, sealed).startswith("trailer:"), length
        assert open_message(path).startswith("trailer:"), length


def test_dropping_whole_chunks_with_a_repaired_trailer_is_found(tmp_path, original):
    """The attacker rewrites the trailer so that it is consistent without a key; the footer still does not fit."""
    from blake3 import blake3

    data, sealed = original
    keep = sealed.chunks - 2
    chunks = [data[HEADER + i * SEALED_CHUNK : HEADER + (i + 1) * SEALED_CHUNK] for i in range(keep)]
    digests = b"".join(blake3(part).digest() for part in [data[:HEADER], *chunks])
    trailer = digests + (keep * 65536).to_bytes(8, "little")
    forged = data[:HEADER] + b"".join(chunks) + trailer + blake3(trailer).digest() + data[-SEALED_FOOTER:]
    path = tmp_path / "object"
    path.write_bytes(forged)
    assert scrub_message(path, sealed).startswith("footer:")
    assert open_message(path).startswith("footer:")


def test_an_altered_chunk_with_a_repaired_trailer_is_found(tmp_path, original):
    from blake3 import blake3

    data, sealed = original
    forged = bytearray(data)
    forged[HEADER + 2 * SEALED_CHUNK] ^= 1
    start = len(data) - TAIL - DIGEST * (sealed.chunks + 1)
    chunk = forged[HEADER + 2 * SEALED_CHUNK : HEADER + 3 * SEALED_CHUNK]
    forged[start + 3 * DIGEST : start + 4 * DIGEST] = blake3(chunk).digest()
    end = len(data) - SEALED_FOOTER
    forged[end - DIGEST : end] = blake3(bytes(forged[start : end - DIGEST])).digest()
    path = tmp_path / "object"
    path.write_bytes(forged)
    scrub_message(path, sealed)
    assert open_message(path).startswith("footer:")


def test_swapped_chunks_are_found(tmp_path, original):
    data, sealed = original
    forged = bytearray(data)
    a, b = (slice(HEADER + i * SEALED_CHUNK, HEADER + (i + 1) * SEALED_CHUNK) for i in (1, 3))
    forged[a], forged[b] = forged[b], forged[a]
    path = tmp_path / "object"
    path.write_bytes(forged)
    assert scrub_message(path, sealed).startswith("chunk 1:")
    assert open_message(path).startswith("chunk 1:")
    with open_records(path, KEY, OBJECT_ID) as records:
        assert records[0] == RECORDS[0]  # chunk 0 is whole, and what is authentic stays readable


@pytest.mark.parametrize("trailing", [b"\x00", b"\x00" * 72, os.urandom(SEALED_CHUNK)])
def test_trailing_bytes_are_found(tmp_path, original, trailing):
    data, sealed = original
    path = tmp_path / "object"
    path.write_bytes(data + trailing)
    assert scrub_message(path, sealed).startswith("trailer:")
    assert open_message(path).startswith("trailer:")


def test_a_chunk_spliced_in_from_another_object_of_the_same_key_is_found(tmp_path, original):
    data, sealed = original
    seal_records(RECORDS, tmp_path / "other", KEY, OBJECT_ID)
    other = (tmp_path / "other").read_bytes()
    path = tmp_path / "object"
    for start, end, part in (
        (HEADER + SEALED_CHUNK, HEADER + 2 * SEALED_CHUNK, "chunk 1"),
        (0, HEADER, "header"),
        (len(data) - SEALED_FOOTER, len(data), "footer"),
    ):
        path.write_bytes(data[:start] + other[start:end] + data[end:])
        assert scrub_message(path, sealed).startswith(part + ":")
        assert open_message(path).startswith(part + ":")


def test_a_whole_object_put_in_place_of_another_is_found(tmp_path, original):
    _, sealed = original
    path = tmp_path / "object"
    seal_records(RECORDS, path, KEY, "ds-2")
    assert open_message(path).startswith("header: this is another object")
    scrub_message(path, sealed)


def test_an_older_object_of_the_same_name_is_found_by_its_digest(tmp_path):
    path = tmp_path / "checkpoint"
    old = seal_bytes(b"step 1", path, KEY, "run-1")
    kept = path.read_bytes()
    new = seal_bytes(b"step 2", path, KEY, "run-1")
    path.write_bytes(kept)
    assert open_bytes(path, KEY, "run-1", old.blake3) == b"step 1"
    with pytest.raises(IntegrityError, match="not the one that was recorded"):
        open_bytes(path, KEY, "run-1", new.blake3)
    with pytest.raises(IntegrityError):
        scrub(path, new.blake3)


def test_another_data_key_opens_nothing(tmp_path, original):
    path = tmp_path / "object"
    path.write_bytes(original[0])
    with pytest.raises(IntegrityError, match="another key"):
        open_records(path, os.urandom(32), OBJECT_ID)


def test_an_object_cut_while_it_is_open_is_found(tmp_path, original):
    path = tmp_path / "object"
    path.write_bytes(original[0])
    with open_records(path, KEY, OBJECT_ID) as records:
        os.truncate(path, HEADER + SEALED_CHUNK + 10)
        with pytest.raises(IntegrityError, match="chunk 1: truncated"):
            records[500]


def test_a_foreign_file_is_refused(tmp_path):
    generator = random.Random(7)
    path = tmp_path / "object"
    for size in (0, 1, 71, 72, 200, 70_000):
        path.write_bytes(generator.randbytes(size))
        with pytest.raises(IntegrityError):
            open_records(path, KEY, OBJECT_ID)


# --- keyslots and wrapped keys ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keyslot_file(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("keys") / "keyslots.json"
    keyslots.create(path, b"correct horse", cost=CHEAP)
    return path.read_bytes()


@pytest.mark.parametrize("passphrase", ["correct hors", "Correct horse", "correct horse ", "\u200b"])
def test_a_wrong_passphrase_is_key_unavailable(tmp_path, keyslot_file, passphrase):
    path = tmp_path / "k"
    path.write_bytes(keyslot_file)
    with pytest.raises(KeyUnavailable) as caught:
        keyslots.unlock(path, passphrase.encode())
    assert passphrase not in repr(caught.value)


def test_every_damaged_byte_of_the_keyslot_file_is_an_integrity_error(tmp_path, keyslot_file):
    generator = random.Random(7)
    path = tmp_path / "k"
    for offset in range(len(keyslot_file)):
        data = bytearray(keyslot_file)
        data[offset] ^= 1 << generator.randrange(8)
        path.write_bytes(data)
        with pytest.raises(IntegrityError):
            keyslots.unlock(path, b"correct horse")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        b'{"schema":"appliance.keyslots/2"}',
        b'{"a":1e999}',
        b"null",
        b" " * (1 << 20),
    ],
)
def test_a_malformed_keyslot_file_is_an_integrity_error(tmp_path, data):
    path = tmp_path / "k"
    path.write_bytes(data)
    with pytest.raises(IntegrityError):
        keyslots.unlock(path, b"p")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("memory_kib", 1 << 30),
        ("memory_kib", 1),
        ("iterations", 10**9),
        ("iterations", 0),
        ("lanes", 1000),
        ("salt", "AAAA"),
        ("salt", "not base64"),
        ("wrapped", "AAAA"),
        ("kind", "none"),
    ],
)
def test_hostile_parameters_are_refused_even_with_a_repaired_checksum(tmp_path, keyslot_file, field, value):
    forge(tmp_path / "k", keyslot_file, **{field: value})
    with pytest.raises(ApplianceError) as caught:
        keyslots.unlock(tmp_path / "k", b"correct horse")
    assert type(caught.value) in (IntegrityError, KeyUnavailable)


def forge(path: Path, keyslot_file: bytes, **changes: object) -> None:
    """Rewrites a slot and the checksum, as an attacker can."""
    import hashlib
    import json

    def canonical() -> bytes:
        return json.dumps(raw, sort_keys=True, separators=(",", ":")).encode() + b"\n"

    raw = json.loads(keyslot_file)
    raw["slots"][0] |= changes
    raw["sha256"] = "0" * 64
    raw["sha256"] = hashlib.sha256(canonical()).hexdigest()
    path.write_bytes(canonical())


def test_cheaper_parameters_do_not_open_the_slot(tmp_path, keyslot_file):
    forge(tmp_path / "k", keyslot_file)
    keyslots.unlock(tmp_path / "k", b"correct horse")  # the forger's checksum is right, so what follows tests the tag
    for field, value in (("memory_kib", 32), ("iterations", 2), ("lanes", 2)):
        forge(tmp_path / "k", keyslot_file, **{field: value})
        with pytest.raises(KeyUnavailable):
            keyslots.unlock(tmp_path / "k", b"correct horse")


def test_a_keyslot_of_another_store_id_does_not_open(tmp_path, keyslot_file):
    import json

    raw = json.loads(keyslot_file)
    other = keyslot_file.replace(raw["store_id"].encode(), b"00" * 16)
    forge(tmp_path / "k", other)
    with pytest.raises(KeyUnavailable):
        keyslots.unlock(tmp_path / "k", b"correct horse")


@pytest.mark.parametrize("respell", [lambda d: d + b"\n", lambda d: d.replace(b":", b": ", 1), lambda d: b" " + d])
def test_a_key_file_in_another_spelling_is_refused(tmp_path, respell):
    root = keyslots.create(tmp_path / "k", b"p", cost=CHEAP)
    ring = KeyRing.create(root, tmp_path)
    for path in (tmp_path / "k", tmp_path / "epoch-1.json"):
        path.write_bytes(respell(path.read_bytes()))
    with pytest.raises(IntegrityError):
        keyslots.unlock(tmp_path / "k", b"p")
    with pytest.raises(IntegrityError):
        ring.new_data_key("ds-1")


def test_every_altered_wrapped_key_is_refused(tmp_path):
    root = keyslots.create(tmp_path / "k", b"p", cost=CHEAP)
    ring = KeyRing.create(root, tmp_path / "keks")
    _, wrapped, epoch = ring.new_data_key("ds-1")
    generator = random.Random(7)
    for offset in range(len(wrapped)):
        data = bytearray(wrapped.encode())
        data[offset] ^= 1 << generator.randrange(7)
        with pytest.raises(IntegrityError):
            ring.unwrap(data.decode("latin-1"), "ds-1", epoch)
    for bad in ("", wrapped[:-4], wrapped + "AAAA", wrapped + "\n", wrapped + "=", wrapped + "==", "é" * 80, "A" * 80):
        with pytest.raises(IntegrityError):
            ring.unwrap(bad, "ds-1", epoch)


def test_every_damaged_byte_of_an_epoch_file_is_refused(tmp_path):
    root = keyslots.create(tmp_path / "k", b"p", cost=CHEAP)
    ring = KeyRing.create(root, tmp_path)
    _, wrapped, epoch = ring.new_data_key("ds-1")
    path = tmp_path / "epoch-1.json"
    good, generator = path.read_bytes(), random.Random(7)
    for offset in range(len(good)):
        data = bytearray(good)
        data[offset] ^= 1 << generator.randrange(8)
        path.write_bytes(data)
        with pytest.raises((IntegrityError, ArtefactMissing)):
            ring.unwrap(wrapped, "ds-1", epoch)
    path.write_bytes(good)
    ring.unwrap(wrapped, "ds-1", epoch)
