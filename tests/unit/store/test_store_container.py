import os
import stat

import pytest
from blake3 import blake3

from appliance.errors import ArtefactMissing, IntegrityError, KeyUnavailable, UsageError
from appliance.store.container import open_bytes, open_records, scrub, seal_bytes, seal_records

KEY = os.urandom(32)
RECORDS = [b"%d " % i * (i % 90) for i in range(5000)]


@pytest.fixture
def sealed(tmp_path):
    path = tmp_path / "object"
    return path, seal_records(iter(RECORDS), path, KEY, "ds-1")


def test_records_come_back_in_any_order(sealed):
    path, _ = sealed
    with open_records(path, KEY, "ds-1") as records:
        assert len(records) == len(RECORDS)
        for index in (4999, 0, 2500, 1, 4998, 0):
            assert records[index] == RECORDS[index]
        assert list(records) == RECORDS


def test_sealed_says_what_lies_on_disk(sealed):
    path, result = sealed
    data = path.read_bytes()
    assert result.bytes == len(data)
    assert result.blake3 == blake3(data).hexdigest()
    stream = sum(map(len, RECORDS)) + 4 * len(RECORDS)
    assert result.chunks == -(-stream // 65536)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == [path.name]
    scrub(path, result.blake3)
    with open_records(path, KEY, "ds-1", result.blake3) as records:
        assert records[7] == RECORDS[7]


def test_no_plaintext_and_no_key_in_the_object(sealed):
    data = sealed[0].read_bytes()
    assert b"89 89 89" not in data
    assert KEY not in data


def test_sealing_twice_shares_no_bytes_of_ciphertext(tmp_path):
    for name in "ab":
        seal_bytes(b"x" * 65536, tmp_path / name, KEY, "id")
    a, b = (tmp_path / "a").read_bytes(), (tmp_path / "b").read_bytes()
    assert a[12:44] != b[12:44]  # the salts
    assert sum(x == y for x, y in zip(a[78:65536], b[78:65536], strict=True)) < 600  # one in 256 by chance


@pytest.mark.parametrize("index", [5000, -1, 10**9])
def test_an_index_out_of_range_is_an_index_error(sealed, index):
    with open_records(sealed[0], KEY, "ds-1") as records, pytest.raises(IndexError):
        records[index]


def test_a_closed_reader_reads_no_more(sealed):
    records = open_records(sealed[0], KEY, "ds-1")
    records.close()
    records.close()
    with pytest.raises((IndexError, KeyUnavailable)):
        records[0]


@pytest.mark.parametrize("data", [b"", b"x", os.urandom(65536), os.urandom(3_000_000)])
def test_bytes_come_back(tmp_path, data):
    result = seal_bytes(memoryview(data), tmp_path / "o", KEY, "checkpoint")
    assert open_bytes(tmp_path / "o", KEY, "checkpoint", result.blake3) == data


def test_open_bytes_wants_exactly_one(sealed):
    with pytest.raises(IntegrityError):
        open_bytes(sealed[0], KEY, "ds-1")


def test_sealing_again_replaces(tmp_path):
    seal_bytes(b"old", tmp_path / "o", KEY, "c")
    seal_bytes(b"new", tmp_path / "o", KEY, "c")
    assert open_bytes(tmp_path / "o", KEY, "c") == b"new"


def test_a_failing_source_leaves_nothing(tmp_path):
    def records():
        yield os.urandom(3_000_000)
        raise UsageError("stop")

    with pytest.raises(UsageError, match="stop"):
        seal_records(records(), tmp_path / "o", KEY, "c")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("object_id", ["", "x" * 256, "\ud800"])
def test_an_unusable_object_id_is_refused(tmp_path, object_id):
    with pytest.raises(UsageError):
        seal_records([], tmp_path / "o", KEY, object_id)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("key", [b"", bytes(16), bytes(33)])
def test_a_key_of_the_wrong_size_is_refused(tmp_path, key):
    with pytest.raises(UsageError):
        seal_records([], tmp_path / "o", key, "c")


def test_missing_link_fifo_and_directory_are_refused(sealed, tmp_path):
    (tmp_path / "link").symlink_to(sealed[0])
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ArtefactMissing):
        open_records(tmp_path / "none", KEY, "ds-1")
    for path in (tmp_path / "link", tmp_path / "fifo", tmp_path):
        with pytest.raises(IntegrityError):
            open_records(path, KEY, "ds-1")
        with pytest.raises(IntegrityError):
            scrub(path, sealed[1].blake3)


def test_no_message_shows_a_record(sealed):
    path, _ = sealed
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    with open_records(path, KEY, "ds-1") as records:
        with pytest.raises(IntegrityError) as caught:
            records[50]
        assert "50 50" not in f"{caught.value!r} {caught.value} {records!r}"
        assert caught.value.__cause__ is None
