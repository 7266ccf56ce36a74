"""Writes the vectors of `docs/spec/ledger.md`. Run once for a format version; released vectors are never changed.

`python tests/vectors/ledger/generate.py DIRECTORY` writes `home/` (a whole ledger without its secret keys) and
`vectors.json` (its parts, and what must be rejected).
"""

from __future__ import annotations

import base64
import json
import shutil
import sys
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from appliance.events.catalog import event
from appliance.events.key import KeyLocked, KeyUnlocked
from appliance.ledger import log, merkle
from appliance.ledger.config import LedgerConfig
from appliance.ledger.leaf import Actor
from appliance.ledger.ledger import Ledger
from appliance.ledger.rows import PolicyRow, row_digest, to_columns

BODY_KEY = bytes(range(32))
ORIGIN = "vectors.example/ledger-1"


def main(directory: Path) -> None:
    log.boot_id = lambda: "00000000-0000-4000-8000-000000000000"  # type: ignore[assignment]
    home = directory / "home"
    home.mkdir(parents=True)
    public = X25519PrivateKey.from_private_bytes(BODY_KEY).public_key().public_bytes_raw()
    config = LedgerConfig(f"sqlite:///{home / 'ledger.db'}", ORIGIN, home / "signing", home / "anchor", public)
    ticks = count()
    start = datetime(2026, 1, 1, tzinfo=UTC)
    row = PolicyRow(sha256="11" * 32, name="demo", text="schema: 1\n", state="active")
    with Ledger.create(config, clock=lambda: start + timedelta(seconds=next(ticks))) as ledger:
        with ledger.transaction(Actor("p-1", "Ann Example"), reason="first policy") as tx:
            tx.policies.add(row)
            tx.append(event("policy.activated", {"name": "demo", "sha256": row.sha256}))
        with ledger.transaction(Actor("p-2", "")) as tx:
            tx.append(KeyUnlocked(until="2026-01-01T08:00:00.000000Z"))
            tx.append(KeyLocked())
        ledger.sign()
        vectors = describe(ledger, row)
    for name in ("ed25519.seed", "mldsa44.seed"):
        (home / "signing" / name).unlink()
    (directory / "vectors.json").write_text(json.dumps(vectors, indent=1, ensure_ascii=False) + "\n")


def describe(ledger: Ledger, row: PolicyRow) -> dict[str, Any]:
    head = ledger.head()
    assert head is not None
    leaves = [ledger.leaf(entry.index) for entry in ledger.entries()]
    proof = ledger.prove(1)
    stored = to_columns(row) | {"event_id": ledger.entry(1).leaf["event_id"]}
    with ledger._database.read() as connection:
        sealed = connection.exec_driver_sql("SELECT sealed FROM body WHERE idx = 1").scalar_one()
    return {
        "version": "appliance.ledger.leaf/1",
        "verifier_keys": list(ledger.verifier_keys),
        "leaves": [leaf.decode() for leaf in leaves],
        "leaf_hashes": [merkle.leaf_hash(leaf).hex() for leaf in leaves],
        "tree_head": head.note,
        "proof": {"leaf": 1, "text": proof},
        "row": {"table": "policy", "columns": stored, "sha256": row_digest("policy", stored)},
        "body": {
            "private_key": BODY_KEY.hex(),
            "sealed": base64.b64encode(sealed).decode(),
            "commitment": ledger.entry(1).leaf["body"]["commitment"],
            "body": ledger.body(1, BODY_KEY),
        },
        "must_reject": rejected(proof),
    }


def rejected(proof: str) -> dict[str, str]:
    """Proofs for leaf 1 that a verifier must refuse, by what is wrong with them."""
    top, note = proof.split("\n\n", 1)
    body, signatures = note.split("\n\n")
    first, second = signatures.splitlines()
    hashes = top.splitlines()[2:]
    return {
        "index of another leaf": proof.replace("index 1\n", "index 0\n"),
        "index with a leading zero": proof.replace("index 1\n", "index 01\n"),
        "index outside the tree": proof.replace("index 1\n", "index 4\n"),
        "a hash too many": proof.replace(hashes[-1], f"{hashes[-1]}\n{hashes[-1]}"),
        "a hash too few": proof.replace(hashes[-1] + "\n", ""),
        "hashes in the wrong order": proof.replace(top, "\n".join([*top.splitlines()[:2], *reversed(hashes)])),
        "base64 that is not canonical": proof.replace("=\n", "\n", 1),
        "another version": proof.replace("proof@v1", "proof@v2"),
        "another tree size": proof.replace("\n4\n", "\n3\n"),
        "another log": proof.replace("ledger-1", "ledger-2"),
        "an extension line": proof.replace(body, body + "\nextension"),
        "the Ed25519 signature stripped": f"{top}\n\n{body}\n\n{second}\n",
        "the ML-DSA-44 signature stripped": f"{top}\n\n{body}\n\n{first}\n",
        "a signature twice": f"{proof}{first}\n",
        "no signature": f"{top}\n\n{body}\n\n",
        "no last newline": proof[:-1],
        "carriage returns": proof.replace("\n", "\r\n"),
    }


if __name__ == "__main__":
    target = Path(sys.argv[1])
    shutil.rmtree(target / "home", ignore_errors=True)
    main(target)
