"""The vectors of docs/spec/ledger.md: what was written by version 1 verifies for ever, what must be rejected is."""

from __future__ import annotations

import base64
import json
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import IntegrityError
from appliance.ledger import merkle, proof
from appliance.ledger.bodies import unseal
from appliance.ledger.config import LedgerConfig
from appliance.ledger.note import VerifierKey, open_checkpoint
from appliance.ledger.reading import LedgerReader
from appliance.ledger.rows import row_digest

HERE = Path(__file__).parents[2] / "vectors" / "ledger"
VECTORS: dict[str, Any] = json.loads((HERE / "vectors.json").read_text())
LEAVES = [leaf.encode() for leaf in VECTORS["leaves"]]
KEYS = VECTORS["verifier_keys"]


def test_the_whole_ledger_verifies(tmp_path: Path) -> None:
    home = Path(shutil.copytree(HERE / "home", tmp_path / "home"))
    config = LedgerConfig(
        f"sqlite:///{home / 'ledger.db'}", "vectors.example/ledger-1", home / "signing", home / "anchor", bytes(32)
    )
    with LedgerReader.open(config) as ledger:
        found = ledger.verify(trusted=tuple(KEYS), body_key=bytes.fromhex(VECTORS["body"]["private_key"]))
        assert found.problems == ()
        assert (found.entries, found.signed_size, found.bodies) == (4, 4, {"ok": 1})


def test_leaf_hashes_root_and_tree_head() -> None:
    hashes = [merkle.leaf_hash(leaf) for leaf in LEAVES]
    assert [digest.hex() for digest in hashes] == VECTORS["leaf_hashes"]
    checkpoint = open_checkpoint(VECTORS["tree_head"], [VerifierKey.parse(key) for key in KEYS], exact=True)
    assert checkpoint.root == merkle.fold(merkle.extend([], 0, hashes))


def test_the_proof() -> None:
    proven = proof.verify(VECTORS["proof"]["text"], LEAVES[1], KEYS)
    assert proven.leaf == json.loads(LEAVES[1])
    for index in (0, 2, 3):
        with pytest.raises(IntegrityError):
            proof.verify(VECTORS["proof"]["text"], LEAVES[index], KEYS)


@pytest.mark.parametrize("name", VECTORS["must_reject"])
def test_must_reject(name: str) -> None:
    text = VECTORS["must_reject"][name]
    assert text != VECTORS["proof"]["text"]
    with pytest.raises(IntegrityError):
        proof.verify(text, LEAVES[1], KEYS)


def test_the_row_and_the_body() -> None:
    row, body, leaf = VECTORS["row"], VECTORS["body"], json.loads(LEAVES[1])
    assert row_digest(row["table"], row["columns"]) == row["sha256"] == leaf["rows"][0]["sha256"]
    sealed = base64.b64decode(body["sealed"])
    assert sha256(sealed).hexdigest() == leaf["body"]["sealed_sha256"]
    opened = unseal(sealed, body["commitment"], bytes.fromhex(body["private_key"]), leaf["origin"])
    assert opened == body["body"] == {"name": "Ann Example", "reason": "first policy"}
    with pytest.raises(IntegrityError):
        unseal(sealed, "00" * 32, bytes.fromhex(body["private_key"]), leaf["origin"])
