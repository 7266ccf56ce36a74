"""Arbitrary and almost right tree heads, proofs, leaves, keys: refused with the error that is meant, or the same value.

Two parsers of each format, the ledger's and the stand-alone verifier's, must agree on what they take.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import IntegrityError
from appliance.export import verify
from appliance.ledger import keyring, proof
from appliance.ledger.leaf import parse_leaf
from appliance.ledger.note import Checkpoint, VerifierKey, open_checkpoint, parse_signature

DIRECTORY = Path(__file__).parents[1] / "vectors" / "ledger"
LEDGER: dict[str, Any] = json.loads((DIRECTORY / "vectors.json").read_text(encoding="utf-8"))
ROTATION: dict[str, Any] = json.loads((DIRECTORY / "rotation.json").read_text(encoding="utf-8"))
KEYS = [VerifierKey.parse(text) for text in LEDGER["verifier_keys"]]
THEIRS = [verify.Key(text, "keys") for text in LEDGER["verifier_keys"]]
NOTE, PROOF, LEAF = LEDGER["tree_head"], LEDGER["proof"]["text"], LEDGER["leaves"][1]
CONSISTENCY = "appliance.consistency/1\nold 4\n" + NOTE.splitlines()[2] + "\n"

pieces = st.sampled_from(
    ["\n", "\n\n", " ", "+", "—", "0", "-1", "9" * 25, "=", "==", "A", "/", "\x00", "\x7f", "\u2028", "\ud800",
     "é", "١", "index 1", "old 4", "extra AA==", "\t", "\r\n", '{"v":1}', "appliance.consistency/1",
     "c2sp.org/tlog-proof@v1"]
)  # fmt: skip


@st.composite
def changed(draw: st.DrawFn, text: str) -> str:
    """A text with a few small changes: pieces cut, doubled, swapped, put in."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 40)))
        put = draw(st.one_of(st.just(""), pieces, st.text(max_size=3), st.just(text[start:end] * 2)))
        text = text[:start] + put + text[end:]
    return text


def taken(errors: type[Exception], parse: Callable[[], Any]) -> Any:
    """What a parser takes the input for; None when it refuses with the error that is meant. Any other is a failure."""
    try:
        return parse()
    except errors:
        return None


@settings(max_examples=120, deadline=None)
@given(changed(NOTE) | st.text(max_size=200))
def test_tree_heads(text: str) -> None:
    ours = taken(IntegrityError, lambda: open_checkpoint(text, KEYS, exact=True))
    theirs = taken(verify.Bad, lambda: verify.open_head(text, THEIRS, "head"))
    assert (ours is None) == (theirs is None)
    assert ours is None or text == NOTE or sorted(text.splitlines()) == sorted(NOTE.splitlines())
    for attempt in (lambda: Checkpoint.parse(text), lambda: parse_signature(text), lambda: open_checkpoint(text, KEYS)):
        taken(IntegrityError, attempt)


@settings(max_examples=120, deadline=None)
@given(changed(PROOF) | changed(NOTE) | st.text(max_size=200))
def test_inclusion_proofs(text: str) -> None:
    ours = taken(IntegrityError, lambda: proof.verify(text, LEAF.encode(), LEDGER["verifier_keys"]))
    head = verify.Head(NOTE, "head")
    theirs = taken(verify.Bad, lambda: verify.check_inclusion(text, LEAF.encode(), 1, head, "leaf.proof") or True)
    assert theirs is None or text == PROOF
    assert ours is None or (ours.index, ours.leaf) == (1, json.loads(LEAF))


@settings(max_examples=120, deadline=None)
@given(changed(CONSISTENCY) | st.text(max_size=200))
def test_consistency_proofs(text: str) -> None:
    head = Checkpoint.parse(NOTE.partition("\n\n")[0] + "\n")
    ours = taken(IntegrityError, lambda: proof.verify_consistency(text, head))
    theirs = taken(verify.Bad, lambda: verify.check_consistency(text, 4, verify.Head(NOTE, "head"), "proof"))
    assert (ours is None) == (theirs is None)
    assert ours is None or text == CONSISTENCY


@settings(max_examples=120, deadline=None)
@given(changed(LEDGER["verifier_keys"][0]) | changed(LEDGER["verifier_keys"][1]) | st.text(max_size=100))
def test_keys(text: str) -> None:
    ours = taken(IntegrityError, lambda: VerifierKey.parse(text))
    theirs = taken(verify.Bad, lambda: verify.Key(text, "key"))
    assert ours is None or ours.encode() == text
    if ours is None or ours.algorithm != 4:  # a witness's, which the verifier has no use for
        assert (ours is None) == (theirs is None)


@settings(max_examples=120, deadline=None)
@given(changed(LEAF) | st.text(max_size=100) | st.binary(max_size=100))
def test_leaves(data: str | bytes) -> None:
    raw = data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass")
    leaf = taken(IntegrityError, lambda: parse_leaf(raw))
    assert leaf is None or leaf["v"] == "appliance.ledger.leaf/1"
    value = taken(verify.Bad, lambda: verify.parse_json(raw, "leaf", ""))
    assert value is None or verify.canonical(value).encode() == raw


changes = st.sampled_from(["index", "facts", "root", "old", "keys", "signatures", "vkey"])
junk = st.none() | st.integers() | st.text(max_size=5) | st.lists(st.integers(), max_size=3) | st.just({})


@settings(max_examples=60, deadline=None)
@given(place=changes, value=junk)
def test_entries_that_change_the_keys(place: str, value: object) -> None:
    ring = keyring.build([ROTATION["leaves"][0].encode()], tuple(KEYS))
    leaf = json.loads(ROTATION["leaves"][ROTATION["changes"][0]])
    holder = leaf if place in leaf else leaf["facts"] if place in leaf["facts"] else leaf["facts"]["keys"][0]
    before = holder[place]
    holder[place] = value
    if value != before:
        with pytest.raises(IntegrityError):
            ring.follow(leaf)
