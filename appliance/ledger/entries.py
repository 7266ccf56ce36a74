"""Reading entries back: filters, leaves and the state of their bodies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from itertools import islice
from typing import Any

from sqlalchemy import Connection, Select, exists, select

from appliance.errors import IntegrityError
from appliance.ledger import schema
from appliance.ledger.bodies import BodyVerdict
from appliance.ledger.leaf import parse_leaf, timestamp


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
        """Tell whether a leaf that the query found has the actor and the facts."""
        wanted = all(leaf["facts"].get(name) == value for name, value in self.facts.items())
        return wanted and (self.actor is None or leaf.get("actor") == self.actor)

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


def read_entries(connection: Connection, wanted: Filter) -> Iterator[Entry]:
    """Read the entries that match, one at a time. Raises `IntegrityError` for a leaf that is none."""
    rows = connection.execute(wanted.query().execution_options(yield_per=1000))
    leaves = ((row.idx, parse_leaf(row.leaf)) for row in rows)
    matching = (item for item in leaves if wanted.admits(item[1]))
    for index, leaf in islice(matching, wanted.limit):
        yield Entry(index, leaf, body_verdict(connection, leaf))


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
