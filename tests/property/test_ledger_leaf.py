"""Canonical JSON against the reference package, and the parsers of what leaves the machine on arbitrary input."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import IntegrityError
from appliance.ledger import proof
from appliance.ledger.canonical import LeafInvalid, canonical
from appliance.ledger.note import VerifierKey, open_checkpoint
from appliance.values import Private

KEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"

names = st.text(st.characters(max_codepoint=127), max_size=8)
scalars = st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=20)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4))


@given(values)
def test_canonical_is_rfc_8785(value: object) -> None:
    assert canonical(value) == rfc8785.dumps(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "value",
    [
        1.5,
        float("nan"),
        2**53,
        -(2**53),
        b"x",
        {1: "x"},
        {"é": 1},
        "\ud800",
        Private(3),
        {"a": [Private("x")]},
        object(),
    ],
)
def test_what_is_not_public_json_is_refused(value: object) -> None:
    with pytest.raises(LeafInvalid):
        canonical(value)


line = st.sampled_from(["", "c2sp.org/tlog-proof@v1", "index 0", "index 01", "extra eA==", "— a b", "a", "AAAA", "1"])


@given(st.text(max_size=60) | st.lists(line, max_size=9).map("\n".join))
def test_parsers_refuse_with_an_error_of_ours(text: str) -> None:
    trusted: Sequence[VerifierKey] = [VerifierKey.parse(KEY)]
    for attempt in (
        lambda: VerifierKey.parse(text),
        lambda: open_checkpoint(text, trusted),
        lambda: proof.verify(text, b"{}", [KEY]),
        lambda: proof.verify("c2sp.org/tlog-proof@v1\nindex 0\n\n" + text, b"{}", [KEY]),
    ):
        with suppress(IntegrityError):
            attempt()
            pytest.fail("something was accepted")
