"""The vectors of a log that changed its keys twice, through the ledger's code and the stand-alone verifier's."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import IntegrityError
from appliance.export import verify
from appliance.ledger import keyring, merkle
from appliance.ledger.leaf import parse_leaf
from appliance.ledger.note import VerifierKey, open_checkpoint

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "vectors" / "ledger" / "rotation.json").read_text(encoding="utf-8")
)
SETS = [tuple(VerifierKey.parse(text) for text in keys["keys"]) for keys in VECTORS["key_sets"]]


def test_the_chain() -> None:
    leaves = [leaf.encode() for leaf in VECTORS["leaves"]]
    ring = keyring.build([leaves[0], *(leaves[index] for index in VECTORS["changes"])], SETS[0])
    assert [(keys.since, list(keys.texts)) for keys in ring.sets] == [
        (keys["since"], keys["keys"]) for keys in VECTORS["key_sets"]
    ]
    hashes = [merkle.leaf_hash(leaf) for leaf in leaves]
    for index in VECTORS["changes"]:
        root = merkle.fold(merkle.extend([], 0, hashes[:index]))
        assert parse_leaf(leaves[index])["facts"]["root"] == root.hex()
    for head in VECTORS["heads"]:
        checkpoint = ring.open(head["note"])
        assert checkpoint.root == merkle.fold(merkle.extend([], 0, hashes[: checkpoint.size]))
        for number, keys in enumerate(SETS):
            if number != head["set"]:
                with pytest.raises(IntegrityError):
                    open_checkpoint(head["note"], keys)


@pytest.mark.parametrize("name", VECTORS["must_reject"])
def test_what_must_be_rejected(name: str) -> None:
    ring = keyring.build([VECTORS["leaves"][0].encode()], SETS[0])
    with pytest.raises(IntegrityError):
        ring.follow(parse_leaf(VECTORS["must_reject"][name].encode()))


def examined(*leaves: str, size: int) -> verify.Examination:
    """The verifier, given only the leaves of a directory and the tree head over them."""
    seen = verify.Examination("", [verify.fingerprint(VECTORS["key_sets"][0]["keys"])], {})
    newest = [head["note"] for head in VECTORS["heads"]][-1]
    keys = VECTORS["key_sets"][-1]["keys"]
    seen.head = verify.open_head(newest, [verify.Key(text, "keys") for text in keys], "head")
    seen.keys_sha256 = verify.fingerprint(keys)
    seen.leaves = {index: leaf for leaf in map(json.loads, leaves) for index in [leaf["index"]]}
    hashes = [merkle.leaf_hash(leaf.encode()) for leaf in VECTORS["leaves"]]
    seen.heads = {n: merkle.fold(merkle.extend([], 0, hashes[:n])).hex() for n in range(size + 1)}
    return seen


def test_the_chain_in_the_verifier() -> None:
    first, *_ = VECTORS["leaves"]
    changes = [VECTORS["leaves"][index] for index in VECTORS["changes"]]
    seen = examined(first, *changes, size=len(VECTORS["leaves"]))
    seen.check_chain()
    assert [*seen.sets.values()] == [keys["keys"] for keys in VECTORS["key_sets"]]
    assert [*seen.sets] == [keys["since"] for keys in VECTORS["key_sets"]]
    for bad in (*VECTORS["must_reject"].values(), ""):
        with pytest.raises((verify.Bad, KeyError)):
            examined(first, *([bad] if bad else []), changes[1], size=len(VECTORS["leaves"])).check_chain()


def test_signatures_are_over_the_statement_as_it_is() -> None:
    leaf = json.loads(VECTORS["leaves"][VECTORS["changes"][0]])
    facts = leaf["facts"]
    new = [key["vkey"] for key in facts["keys"]]
    said = {"index": leaf["index"], "new": new, "old": facts["old"], "origin": VECTORS["origin"], "root": facts["root"]}
    message = b"appliance/ledger/rotation/v1\n" + verify.canonical(said).encode()
    for text, signature in zip([*facts["old"], *new], facts["signatures"], strict=True):
        key, raw = VerifierKey.parse(text), base64.b64decode(signature)
        assert key.has_signed(message, raw)
        assert not key.has_signed(message + b"\n", raw)
