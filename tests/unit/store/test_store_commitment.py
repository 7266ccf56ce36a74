"""The commitment to a watermark key: a golden value, and every bit of the key counts."""

from __future__ import annotations

import pytest

from appliance.errors import KeyUnavailable
from appliance.store.commitment import commit_to


def test_the_commitment_is_the_specified_digest() -> None:
    found = commit_to(bytes(range(32)))
    assert found == "089b9877ac60b2acf48c1aff3316f13b9a73eb21f03a8f16f69e3e0b90cf2c13"
    assert commit_to(bytearray(range(32))) == found


def test_every_bit_counts() -> None:
    keys = [bytes(32)] + [(1 << bit).to_bytes(32, "big") for bit in range(256)]
    assert len({commit_to(key) for key in keys}) == 257


def test_a_key_of_another_length_is_refused() -> None:
    with pytest.raises(KeyUnavailable):
        commit_to(bytes(31))
