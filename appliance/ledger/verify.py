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

from appliance.errors import IntegrityError
from appliance.ledger import keyring, schema, stated, witness
from appliance.ledger.anchor import Anchor
from appliance.ledger.crosscheck import check_definitions, check_rows, check_storage
from appliance.ledger.database import stream
from appliance.ledger.headcheck import HeadCheck, OutsideHead
from appliance.ledger.keyring import Keyring, Keys, KeySet
from appliance.ledger.leaf import parse_leaf
from appliance.ledger.note import VerifierKey
from appliance.ledger.problems import Problems
from appliance.ledger.scan import BodyScan, Scan
from appliance.ledger.witness import Cosigned

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
        tree head that was witnessed or lies outside this volume covers them.
      anchor_external: whether the anchor lies on another file system than the database.
      bodies: number of entries for each `BodyVerdict`.
      cosigned: the newest cosignature of each trusted witness on a tree head that holds.
      fork: two notes signed by the log's keys that cannot both be true, which proves it to anybody; empty without one.
      key_sets: the keys of the log, oldest first, as far as each change of them holds.
    """

    entries: int
    root: str
    signed_size: int
    first_bad: int | None
    problems: tuple[str, ...]
    alterable_from: int
    anchor_external: bool
    bodies: dict[str, int] = field(default_factory=dict)
    cosigned: tuple[Cosigned, ...] = ()
    fork: tuple[str, ...] = ()
    key_sets: tuple[KeySet, ...] = ()

    @property
    def witnessed_size(self) -> int:
        """Entries that a witness saw: whoever holds the signing keys can alter them no more."""
        return max((cosigned.size for cosigned in self.cosigned), default=0)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify_ledger(
    connection: Connection,
    beside: Path,
    trusted: Keys,
    anchor: Anchor,
    progress: Progress | None,
    *,
    body_key: bytes | None,
    deep: bool,
    witnesses: Sequence[VerifierKey] = (),
    kept: Sequence[str] = (),
) -> Verification:
    """Verify everything in one snapshot. Raises `IntegrityError` only where the database cannot be read on.

    `beside` is what an anchor must not share its file system with to outlive a rollback of it: the database's file, or
    the signing keys where the database is on a server. `kept` are signed notes of the log that were kept elsewhere.
    """
    problems = Problems()
    anchored = _look_at_anchor(anchor, problems)  # before the first query, with which the snapshot begins
    # A table without its definition cannot be read at all, so this comes first and may be the last.
    if not check_tables(connection, problems):
        return _unreadable(problems, trusted)
    ring = check_keys(connection, trusted, problems)
    bodies = BodyScan(connection, ring.origin, body_key, problems)
    outside = [*_open_anchored(anchor, anchored, ring, problems), *_read_kept(kept, ring)]
    heads = HeadCheck(connection, ring, outside, problems)
    scan = Scan(connection, ring.origin, bodies, heads, problems)
    for row in stream(connection, "SELECT idx, event_id, leaf, leaf_hash, type, ts, subject FROM entry ORDER BY idx"):
        scan.entry(row)
        if progress and scan.size % _SHOWN_EVERY == 0:
            progress(scan.size, heads.largest)
    scan.finish()
    check_rows(connection, scan.covered, problems)
    check_stated_definitions(connection, problems)
    if deep:
        check_storage(connection, problems)
    external = anchor.outside(beside)
    cosigned = witness.check(connection, witnesses, heads.good_size, problems)
    seen = [cosignature.size for cosignature in cosigned]
    return Verification(
        entries=scan.size,
        root=scan.root.hex(),
        signed_size=heads.good_size,
        first_bad=problems.first_bad,
        problems=problems.messages,
        alterable_from=max([heads.anchored_size if external else 0, heads.outside_size, *seen]),
        anchor_external=external,
        bodies=dict(Counter(bodies.verdicts)),
        cosigned=cosigned,
        fork=heads.fork,
        key_sets=ring.sets,
    )


def check_tables(connection: Connection, problems: Problems) -> bool:
    """Tell whether the tables are there without which nothing can be read; definitions are compared later."""
    present = schema.schema_digests(connection).keys()
    missing = [name for name in schema.tables_since_the_first() if f"table {name}" not in present]
    for name in missing:
        problems.add(f"table {name} is missing from the database")
    return not missing


def check_keys(connection: Connection, trusted: Keys, problems: Problems) -> Keyring:
    """Read the key sets of the log, each change checked; the trusted keys alone where they are none of these."""
    try:
        first, *later = keyring.leaves_about_keys(connection)
        ring = keyring.build([first], trusted)
    except IntegrityError as error:
        problems.add(error.message, 0)
        return Keyring.of(trusted)
    for leaf in later:
        try:
            ring = ring.follow(parse_leaf(leaf))
        except IntegrityError as error:
            problems.add(error.message, _index(leaf))
            break
    if not ring.has(trusted):
        problems.add("the keys that are trusted are not among those that the ledger names", 0)
        return Keyring.of(trusted)
    return ring


def _index(leaf: bytes) -> int | None:
    try:
        index = parse_leaf(leaf).get("index")
    except IntegrityError:
        return None
    return index if type(index) is int and index >= 0 else None


def check_stated_definitions(connection: Connection, problems: Problems) -> None:
    """Compare the definitions with the newest statement of them."""
    try:
        definitions = stated.read_definitions(connection)
    except IntegrityError:
        problems.add("the first entry does not say how the ledger was made", 0)
        return
    check_definitions(connection, definitions, problems)


def _look_at_anchor(anchor: Anchor, problems: Problems) -> str | None:
    """Read what is anchored. Read in the snapshot, it could be ahead of it: others write and anchor meanwhile."""
    try:
        note = anchor.text()
    except IntegrityError as error:
        problems.add(str(error))
        return None
    if note is None:
        problems.add("the anchor is missing, so a rolled-back database could not be told")
    return note


def _open_anchored(anchor: Anchor, note: str | None, ring: Keyring, problems: Problems) -> list[OutsideHead]:
    if note is None:
        return []
    try:
        checkpoint = anchor.open(note, ring)
    except IntegrityError as error:
        problems.add(str(error))
        return []
    return [OutsideHead(True, note, checkpoint.size, checkpoint.root)]


def _read_kept(notes: Sequence[str], ring: Keyring) -> list[OutsideHead]:
    """Read heads kept elsewhere; one that the log did not sign proves nothing and raises `IntegrityError`."""
    opened = [(note, ring.open_outside(note, exact=False)) for note in notes]
    return [OutsideHead(False, note, checkpoint.size, checkpoint.root) for note, checkpoint in opened]


def _unreadable(problems: Problems, trusted: Keys) -> Verification:
    return Verification(
        entries=0,
        root="",
        signed_size=0,
        first_bad=problems.first_bad,
        problems=problems.messages,
        alterable_from=0,
        anchor_external=False,
        key_sets=(KeySet(0, trusted),),
    )
