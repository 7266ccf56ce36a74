"""Open after seal is identity, for any records."""

import os
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.store.container import open_bytes, open_records, scrub, seal_bytes, seal_records

KEY = os.urandom(32)
CHUNK = 65536
# Lengths on both sides of chunk edges, with bytes that need no search of their own.
LENGTHS = st.one_of(
    st.integers(0, 300), st.sampled_from([CHUNK - 5, CHUNK - 4, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 1_200_000])
)
BIG = os.urandom(1_200_000)
SMALL = st.lists(st.binary(max_size=200), max_size=60)
LARGE = st.lists(LENGTHS.map(lambda size: BIG[:size]), max_size=6)


@settings(derandomize=True, deadline=None, max_examples=120)
@given(records=st.one_of(SMALL, LARGE), object_id=st.text(st.characters(codec="utf-8"), min_size=1, max_size=60))
def test_open_after_seal_is_identity(records, object_id):
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "o")
        sealed = seal_records(iter(records), path, KEY, object_id)
        scrub(path, sealed.blake3)
        with open_records(path, KEY, object_id, sealed.blake3) as opened:
            assert len(opened) == len(records)
            assert list(opened) == records
            for index in reversed(range(len(records))):
                assert opened[index] == records[index]


@settings(derandomize=True, deadline=None, max_examples=40)
@given(size=st.one_of(LENGTHS, st.integers(0, 1_200_000)))
def test_open_bytes_after_seal_bytes_is_identity(size):
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "o")
        seal_bytes(BIG[:size], path, KEY, "c")
        assert open_bytes(path, KEY, "c") == BIG[:size]


def test_zero_records_and_one_empty_record_are_different(tmp_path):
    seal_records([], tmp_path / "none", KEY, "c")
    seal_records([b""], tmp_path / "one", KEY, "c")
    with open_records(tmp_path / "none", KEY, "c") as none, open_records(tmp_path / "one", KEY, "c") as one:
        assert (list(none), list(one)) == ([], [b""])
