"""Reading entries back: filters, leaves and the state of their bodies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from itertools import islice
from typing import Any

from sqlalchemy import Connection, Select, exists, select

from appliance.errors import IntegrityError
from appliance.ledger import merkle, schema
from appliance.ledger.bodies import BodyVerdict
from appliance.ledger.leaf import parse_leaf, timestamp
from appliance.ledger.register import Found

_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry: its index, its leaf as a dictionary, and what can be said of its body (None: it never had one)."""

    index: int
    leaf: dict[str, Any]
    body: BodyVerdict | None


@dataclass(frozen=True, slots=True)
class Filter:
    """Which entries to read; None matches all. Times are inclusive."""

    type: str | None
    subject: str | None
    actor: str | None
    since: datetime | None
    until: datetime | None
    limit: int | None
    newest_first: bool
    facts: Mapping[str, str] = field(default_factory=dict)

    def admits(self, leaf: dict[str, Any]) -> bool:
        """Tell whether a leaf that was found has the actor, the facts and the time."""
        wanted = all(leaf["facts"].get(name) == value for name, value in self.facts.items())
        late = self.since is None or leaf["time"] >= timestamp(self.since)
        early = self.until is None or leaf["time"] <= timestamp(self.until)
        return wanted and late and early and (self.actor is None or leaf.get("actor") == self.actor)

    def choose(self, found: Sequence[Found]) -> Sequence[Found]:
        """Choose from the entries of its type those that are about its subject, in its order."""
        ordered = reversed(found) if self.newest_first else found
        return [entry for entry in ordered if self.subject in (None, entry.subject)]

    def query(self) -> Select[tuple[int, bytes]]:
        """Ask for what the database knows in columns; actor and facts stand in the leaf only."""
        column = schema.entry.c
        query = select(column.idx, column.leaf).order_by(column.idx.desc() if self.newest_first else column.idx)
        if self.type is not None:
            query = query.where(column.type == self.type)
        if self.subject is not None:
            query = query.where(column.subject == self.subject)
        if self.since is not None:
            query = query.where(column.ts >= timestamp(self.since))
        if self.until is not None:
            query = query.where(column.ts <= timestamp(self.until))
        return query


def read_entries(connection: Connection, wanted: Filter, registered: Sequence[Found] | None = None) -> Iterator[Entry]:
    """Read the entries that match, one at a time.

    Args:
      connection: the snapshot.
      wanted: which ones.
      registered: all entries of the wanted type, as the register has them: each leaf is compared with it. None takes
        the word of the database.

    Raises:
      IntegrityError: a leaf is none, or not the registered one.
    """
    leaves = _query(connection, wanted) if registered is None else _read(connection, wanted.choose(registered))
    matching = (item for item in leaves if wanted.admits(item[1]))
    for index, leaf in islice(matching, wanted.limit):
        yield Entry(index, leaf, body_verdict(connection, leaf))


def _query(connection: Connection, wanted: Filter) -> Iterator[tuple[int, dict[str, Any]]]:
    rows = connection.execute(wanted.query().execution_options(yield_per=1000))
    return ((row.idx, parse_leaf(row.leaf)) for row in rows)


def _read(connection: Connection, found: Sequence[Found]) -> Iterator[tuple[int, dict[str, Any]]]:
    for entry in found:
        yield entry.index, read_registered(connection, entry)


def read_registered(connection: Connection, found: Found) -> dict[str, Any]:
    """Read the leaf of a registered entry. Raises `IntegrityError` when it is not the one that the log proves."""
    query = select(schema.entry.c.leaf).where(schema.entry.c.idx == found.index)
    return parse_leaf(require_registered(found, connection.execute(query).scalar_one_or_none()))


def read_leaves(connection: Connection, types: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Read the leaves of entries of these types in order, by the word of the database."""
    column = schema.entry.c
    query = select(column.leaf).where(column.type.in_(types)).order_by(column.idx).execution_options(yield_per=1000)
    return (parse_leaf(leaf) for (leaf,) in connection.execute(query))


def read_all_registered(connection: Connection, found: Sequence[Found]) -> Iterator[dict[str, Any]]:
    """Read the leaves of registered entries, many at once. Raises `IntegrityError` as `read_registered` does."""
    for start in range(0, len(found), _AT_ONCE):
        some = found[start : start + _AT_ONCE]
        query = select(schema.entry.c.idx, schema.entry.c.leaf).where(schema.entry.c.idx.in_([e.index for e in some]))
        leaves = {row.idx: row.leaf for row in connection.execute(query)}
        for entry in some:
            yield parse_leaf(require_registered(entry, leaves.get(entry.index)))


def require_registered(found: Found, leaf: object) -> bytes:
    """Give the leaf back if it is the registered one. Raises `IntegrityError` otherwise."""
    if not isinstance(leaf, bytes) or merkle.leaf_hash(leaf).hex() != found.leaf_hash:
        raise IntegrityError(f"entry {found.index} of the ledger was altered")
    return leaf


def read_entry(connection: Connection, data: bytes) -> Entry:
    """Read a leaf's bytes as an entry. Raises `IntegrityError` for a leaf that is none."""
    leaf = parse_leaf(data)
    return Entry(leaf["index"], leaf, body_verdict(connection, leaf))


def body_verdict(connection: Connection, leaf: dict[str, Any]) -> BodyVerdict | None:
    """Say what can be said of the body without a key to open it."""
    if leaf["body"] is None:
        return None
    try:
        if read_body(connection, leaf) is not None:
            return BodyVerdict.SEALED
    except IntegrityError:
        return BodyVerdict.MISSING
    column = schema.entry.c
    erased = (column.type == "body.erased") & (column.subject == str(leaf["body"]["index"]))
    said = connection.execute(select(exists().where(erased))).scalar()
    return BodyVerdict.ERASED if said else BodyVerdict.MISSING


def read_body(connection: Connection, leaf: dict[str, Any], *, checked: bool = True) -> bytes | None:
    """Read the sealed bytes of the leaf's body; None where it has none or they are gone.

    Raises `IntegrityError` when they are not what the leaf committed to, unless `checked` is false.
    """
    if leaf["body"] is None:
        return None
    query = select(schema.body.c.sealed).where(schema.body.c.idx == leaf["body"]["index"])
    sealed = connection.execute(query).scalar_one_or_none()
    if sealed is None:
        return None
    if not checked:
        return bytes(sealed)
    if not isinstance(sealed, bytes) or sha256(sealed).hexdigest() != leaf["body"]["sealed_sha256"]:
        raise IntegrityError(f"the body of entry {leaf['index']} was altered")
    return sealed
