"""Writes `rotation.json`, the vectors of "Change of keys" in `docs/spec/ledger.md`; released vectors are never changed.

`python tests/vectors/ledger/generate_rotation.py DIRECTORY`. Keys are drawn anew by each run, private parts dropped.
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

from appliance.events.key import KeyLocked
from appliance.ledger import log
from appliance.ledger.canonical import canonical
from appliance.ledger.config import LedgerConfig
from appliance.ledger.leaf import Actor
from appliance.ledger.ledger import Ledger

ORIGIN = "vectors.example/ledger-2"
ACTOR = Actor("p-1", "")


def main(directory: Path) -> None:
    log.boot_id = lambda: "00000000-0000-4000-8000-000000000000"  # type: ignore[assignment]
    ticks, start = count(), datetime(2026, 1, 1, tzinfo=UTC)
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        config = LedgerConfig(f"sqlite:///{home / 'ledger.db'}", ORIGIN, home / "signing", home / "anchor", bytes(32))
        with Ledger.create(config, clock=lambda: start + timedelta(seconds=next(ticks))) as ledger:
            heads = []
            for _ in range(2):
                with ledger.transaction(ACTOR) as tx:
                    tx.append(KeyLocked())
                index, head = ledger.rotate(ACTOR)
                before = ledger.head(covering=index - 1)
                assert before is not None
                heads += [before.note, head.note]
            text = json.dumps(describe(ledger, heads), indent=1, ensure_ascii=False)
    (directory / "rotation.json").write_text(text + "\n")


def describe(ledger: Ledger, heads: list[str]) -> dict[str, Any]:
    leaves = [ledger.leaf(entry.index).decode() for entry in ledger.entries()]
    changes = [i for i, leaf in enumerate(leaves) if json.loads(leaf)["type"] == "ledger.rekeyed"]
    return {
        "origin": ORIGIN,
        "key_sets": [{"since": keys.since, "keys": list(keys.texts)} for keys in ledger.key_sets],
        "leaves": leaves,
        "changes": changes,
        "heads": [{"set": (number + 1) // 2, "note": note} for number, note in enumerate(heads)],
        "must_reject": rejected(json.loads(leaves[changes[0]]), json.loads(leaves[changes[1]])),
    }


def rejected(first: dict[str, Any], second: dict[str, Any]) -> dict[str, str]:
    """Leaves that must not be taken for the first change of keys, by what is wrong with them."""

    def changed(change: Callable[[dict[str, Any]], None]) -> str:
        leaf = copy.deepcopy(first)
        change(leaf)
        return canonical(leaf).decode()

    def facts(**changes: Any) -> str:
        return changed(lambda leaf: leaf["facts"].update(changes))

    signatures, keys = first["facts"]["signatures"], first["facts"]["keys"]
    return {
        "another index": changed(lambda leaf: leaf.update(index=leaf["index"] + 1)),
        "another root": facts(root="00" * 32),
        "another old set": facts(old=second["facts"]["old"]),
        "another new set": facts(keys=second["facts"]["keys"]),
        "new keys in the wrong order": facts(keys=keys[::-1]),
        "one new key only": facts(keys=keys[:1], signatures=signatures[:3]),
        "not signed by the old Ed25519 key": facts(signatures=[signatures[2], *signatures[1:]]),
        "not signed by the old ML-DSA-44 key": facts(signatures=[signatures[0], signatures[3], *signatures[2:]]),
        "not signed by the new Ed25519 key": facts(signatures=[*signatures[:2], signatures[0], signatures[3]]),
        "not signed by the new ML-DSA-44 key": facts(signatures=[*signatures[:3], signatures[1]]),
        "a signature too few": facts(signatures=signatures[:3]),
        "a signature too many": facts(signatures=[*signatures, signatures[0]]),
        "the second change, said first": canonical(second).decode(),
        "base64 that is not canonical": facts(signatures=[signatures[0].replace("==", "="), *signatures[1:]]),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
