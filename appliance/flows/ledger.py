"""`ledger`: show, prove, sign, witness, export, erase, upgrade."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from appliance.errors import KeyUnavailable, UsageError
from appliance.flows.home import Home, Operator
from appliance.ledger.entries import Entry
from appliance.ledger.heads import TreeHead
from appliance.ledger.ledger import Ledger
from appliance.ledger.witness import Cosigned


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which entries to list; None is all.

    Attributes:
      type: their type.
      subject: what they are about.
      actor: pseudonym of who acted.
      since: their earliest time.
      until: their latest time.
      last: at most so many, the newest.
      facts: facts that they state.
    """

    type: str | None = None
    subject: str | None = None
    actor: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    last: int | None = None
    facts: Mapping[str, str] = field(default_factory=dict)


def exposure(home: Home, signed: int) -> str:
    """Say what could be done unnoticed, given how many entries the anchored tree head covers."""
    if home.anchor_is_external:
        return f"anchored outside the home up to entry {signed}; a copy of the home older than that is noticed"
    return (
        "the anchor lies inside the home: an older copy of the whole home is not detectable, and whoever holds the "
        "signing keys could alter every entry"
    )


def log(home: Home, wanted: Wanted) -> list[Entry]:
    """List the entries that match, oldest first."""
    with home.reader() as ledger:
        times = {"since": wanted.since, "until": wanted.until}
        found = ledger.entries(
            wanted.type, wanted.subject, wanted.actor, **times, limit=wanted.last, newest_first=True, facts=wanted.facts
        )
        return list(found)[::-1]


def show(home: Home, index: int) -> tuple[Entry, dict[str, Any] | None]:
    """Read one entry and, while the store is unsealed, its body."""
    with home.reader() as ledger:
        entry = ledger.entry(index)
        try:
            body = ledger.body(index, home.agent().body_key())
        except KeyUnavailable:
            body = None
    return entry, body


def prove(home: Home, index: int) -> tuple[str, bytes]:
    """Make an inclusion proof of an entry under the newest signed tree head, and the leaf's bytes."""
    with home.ledger() as ledger:
        ledger.sign()
        return ledger.prove(index), ledger.leaf(index)


def prove_consistency(home: Home, old_size: int) -> tuple[str, str]:
    """Make a proof that the newest tree head continues the tree of `old_size` entries, and that head's note."""
    with home.ledger() as ledger:
        head = ledger.sign()
        return ledger.prove_consistency(old_size, head), head.note


def sign(home: Home) -> TreeHead:
    """Sign and anchor the log's end."""
    with home.ledger() as ledger:
        return ledger.sign()


def head(home: Home) -> tuple[str, tuple[str, ...]]:
    """Sign the log's end; its note, and the keys that check it."""
    with home.ledger() as ledger:
        return ledger.sign().note, ledger.verifier_keys


def witness_request(home: Home, old_size: int | None) -> str:
    """Write what a witness is asked to cosign: the body of a C2SP `add-checkpoint` request."""
    with home.ledger() as ledger:
        return ledger.witness_request(old_size)


def add_cosignatures(home: Home, answer: Path) -> list[Cosigned]:
    """Take the cosignature lines of a witness into the ledger: all of them, or none when one does not verify."""
    with home.ledger() as ledger:
        return ledger.add_cosignatures(read_text(answer))


def export(home: Home, directory: Path) -> tuple[TreeHead, int]:
    """Write the log for auditors into a new directory; returns the tree head it ends with and the number of files."""
    with home.reader() as ledger:
        return ledger.export(directory.absolute())


def erase(home: Home, operator: Operator, index: int, eraser_url: str) -> int:
    """Erase the body of an entry; returns the index of the entry that says so."""
    config = home.ledger_config(eraser_url=eraser_url)
    with Ledger.open(config) as ledger:
        return ledger.erase(index, home.actor(operator), operator.reason or None)


def upgrade(home: Home, owner_url: str, eraser_url: str) -> int:
    """Bring the database to this release's tables as the role that owns them; returns the number of entries."""
    with Ledger.open(home.ledger_config(owner_url, eraser_url)) as ledger:
        return ledger.sign().size


def read_text(path: Path) -> str:
    """Read a file that the user named. Raises `UsageError`."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        raise UsageError(f"cannot read {path}") from None
