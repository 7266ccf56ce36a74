"""A process that uses a ledger until it is killed, and says on standard output what was acknowledged.

`python -m tests.fault.ledger_writer HOME URL ERASER_URL LIFE DO...` repeats what DO names, in turn: append, sign,
rotate, erase, export. Lines: `row NUMBER INDEX`, `signed SIZE NOTE`, `rotated SIZE NOTE`, `erased INDEX`,
`exported NAME`; notes in base64.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Callable
from itertools import count, cycle
from pathlib import Path

from appliance.events.catalog import event
from appliance.ledger.config import LedgerConfig
from appliance.ledger.heads import TreeHead
from appliance.ledger.leaf import Actor
from appliance.ledger.ledger import Ledger
from tests.builders import ledger_config, policy_row

ACTOR = Actor("p-1", "Ann")


def configuration(home: Path, url: str, eraser_url: str = "", owner_url: str = "") -> LedgerConfig:
    return ledger_config(home, url=url, eraser_url=eraser_url, owner_url=owner_url)


def say(*words: object) -> None:
    print(*words, flush=True)


def note(head: TreeHead) -> str:
    return base64.b64encode(head.note.encode()).decode()


class Uses:
    """What can be done, each with its acknowledgement."""

    def __init__(self, ledger: Ledger, home: Path, life: int) -> None:
        self.ledger = ledger
        self.home = home
        self.numbers = count(life * 10_000)  # a row may be in without having been acknowledged, so never one twice
        self.appended: list[int] = []

    def append(self) -> None:
        number = next(self.numbers)
        digest = f"{number:064d}"
        with self.ledger.transaction(ACTOR, reason="crash") as tx:
            tx.policies.add(policy_row(sha256=digest, name="n", text="x" * 300))
            index = tx.append(event("policy.activated", {"name": "n", "sha256": digest}))
        self.appended.append(index)
        say("row", number, index)

    def sign(self) -> None:
        self.append()
        head = self.ledger.sign()
        say("signed", head.size, note(head))

    def rotate(self) -> None:
        _, head = self.ledger.rotate(ACTOR, "crash")
        say("rotated", head.size, note(head))

    def erase(self) -> None:
        self.append()
        self.ledger.erase(self.appended[-1], ACTOR, "crash")
        say("erased", self.appended[-1])

    def export(self) -> None:
        self.append()
        self.ledger.sign()
        name = f"export-{next(self.numbers)}"
        self.ledger.export(self.home / name)
        say("exported", name)


def main() -> None:
    home, url, eraser_url, life, *wanted = sys.argv[1:]
    ledger = Ledger.open(configuration(Path(home), url, eraser_url))
    uses = Uses(ledger, Path(home), int(life))
    say("ready")
    actions: list[Callable[[], None]] = [getattr(uses, name) for name in wanted]
    for action in cycle(actions):
        action()


if __name__ == "__main__":
    main()
