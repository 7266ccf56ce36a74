"""Verification of a whole ledger: every stored byte that can change a value is compared with the signed log.

One pass over the entries in bounded memory, hashing stored bytes only (nothing is encoded again), then the caches,
the tree heads, the business rows both ways, the definitions and the anchor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Connection

from appliance.errors import ApplianceError, IntegrityError
from appliance.ledger import schema
from appliance.ledger.anchor import Anchor
from appliance.ledger.crosscheck import check_definitions, check_rows, check_storage
from appliance.ledger.database import stream
from appliance.ledger.headcheck import HeadCheck
from appliance.ledger.leaf import parse_leaf
from appliance.ledger.note import VerifierKey
from appliance.ledger.problems import Problems
from appliance.ledger.scan import BodyScan, Scan

_SHOWN_EVERY = 10_000

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What a verification found.

    Attributes:
      entries: number of entries in the database.
      root: hex root over them, recomputed.
      signed_size: entries that the newest valid tree head covers.
      first_bad: smallest index that a problem concerns, where one can be named.
      problems: in words; empty when all is well.
      alterable_from: entries from this index on could still be altered by the holder of the signing keys, because no
        tree head outside this volume covers them.
      anchor_external: whether the anchor lies on another file system than the database.
      bodies: number of entries for each `BodyVerdict`.
    """

    entries: int
    root: str
    signed_size: int
    first_bad: int | None
    problems: tuple[str, ...]
    alterable_from: int
    anchor_external: bool
    bodies: dict[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify_ledger(
    connection: Connection,
    beside: Path,
    trusted: Sequence[VerifierKey],
    anchor: Anchor,
    progress: Progress | None,
    *,
    body_key: bytes | None,
    deep: bool,
) -> Verification:
    """Verify everything in one snapshot. Raises `IntegrityError` only where the database cannot be read on.

    `beside` is what an anchor must not share its file system with to outlive a rollback of it: the database's file, or
    the signing keys where the database is on a server.
    """
    problems = Problems()
    # A table without its definition cannot be read at all, so this comes first and may be the last.
    if not check_tables(connection, problems):
        return _unreadable(problems)
    bodies = BodyScan(connection, trusted[0].name, body_key, problems)
    heads = HeadCheck(connection, trusted, _read_anchor(anchor, problems), problems)
    scan = Scan(connection, trusted[0].name, bodies, heads, problems)
    for row in stream(connection, "SELECT idx, event_id, leaf, leaf_hash, type, ts, subject FROM entry ORDER BY idx"):
        scan.entry(row)
        if progress and scan.size % _SHOWN_EVERY == 0:
            progress(scan.size, heads.largest)
    scan.finish()
    check_rows(connection, scan.covered, problems)
    check_genesis(connection, trusted, problems)
    if deep:
        check_storage(connection, problems)
    external = anchor.outside(beside)
    return Verification(
        entries=scan.size,
        root=scan.root.hex(),
        signed_size=heads.good_size,
        first_bad=problems.first_bad,
        problems=problems.messages,
        alterable_from=heads.anchored_size if external else 0,
        anchor_external=external,
        bodies=dict(Counter(bodies.verdicts)),
    )


def check_tables(connection: Connection, problems: Problems) -> bool:
    """Whether the tables are there without which nothing can be read; definitions are compared later."""
    present = schema.schema_digests(connection).keys()
    missing = [name for name in schema.tables_since_the_first() if f"table {name}" not in present]
    for name in missing:
        problems.add(f"table {name} is missing from the database")
    return not missing


def check_genesis(connection: Connection, trusted: Sequence[VerifierKey], problems: Problems) -> None:
    """Compare keys with what the first entry states of them, and definitions with the newest statement."""
    try:
        keys, definitions = stated(connection)
    except (StopIteration, ApplianceError, KeyError, TypeError, ValueError):
        problems.add("the first entry does not say how the ledger was made", 0)
        return
    if keys != [key.encode() for key in trusted]:
        problems.add("the keys that are trusted are not those that the first entry names", 0)
    check_definitions(connection, definitions, problems)


def stated(connection: Connection) -> tuple[list[str], dict[str, str]]:
    """The verifier keys of the first entry, and the definitions that it or the newest `ledger.upgraded` states.

    Raises `StopIteration`, `IntegrityError`, `KeyError`, `TypeError` or `ValueError` where an entry does not say so.
    """
    genesis = parse_leaf(next(stream(connection, "SELECT leaf FROM entry WHERE idx = 0"))[0])["facts"]
    newest = "SELECT leaf FROM entry WHERE type = 'ledger.upgraded' ORDER BY idx DESC LIMIT 1"
    upgraded = next(stream(connection, newest), None)
    facts = genesis if upgraded is None else parse_leaf(upgraded[0])["facts"]
    return [key["vkey"] for key in genesis["keys"]], dict(facts["schema"])


def _read_anchor(anchor: Anchor, problems: Problems) -> tuple[str, int, bytes] | None:
    try:
        anchored = anchor.read()
    except IntegrityError as error:
        problems.add(str(error))
        return None
    if anchored is None:
        problems.add("the anchor is missing, so a rolled-back database could not be told")
        return None
    note, checkpoint = anchored
    return note, checkpoint.size, checkpoint.root


def _unreadable(problems: Problems) -> Verification:
    return Verification(
        entries=0,
        root="",
        signed_size=0,
        first_bad=problems.first_bad,
        problems=problems.messages,
        alterable_from=0,
        anchor_external=False,
    )
