"""The log in the database: reading its head and nodes, and appending entries at the end of a transaction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Select, bindparam, select, update

from appliance.errors import IntegrityError
from appliance.ledger import dialect, merkle, schema
from appliance.ledger.bodies import SealedBody, seal
from appliance.ledger.events import check_facts
from appliance.ledger.leaf import VERSION, Actor, boot_id, encode_leaf, new_event_id, parse_leaf, software, timestamp

Clock = Callable[[], datetime]
_TOLERATED = timedelta(seconds=2)  # how far a clock may step back before the ledger says so


def now() -> datetime:
    """The clock of the machine."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Head:
    """Cache of the log's end: number of entries and roots of its complete subtrees, largest first.

    `last` is the time of the last entry where the head was read to be locked, else empty.
    """

    size: int
    frontier: tuple[bytes, ...]
    last: str = ""

    @property
    def root(self) -> bytes:
        """Root over all entries."""
        return merkle.fold(self.frontier)


# Built once: SQLAlchemy takes longer to build these than the database to run them.
_LAST = select(schema.entry.c.ts).where(schema.entry.c.idx == schema.head.c.size - 1).scalar_subquery()
_LOCK = select(schema.head.c.size, schema.head.c.frontier, _LAST.label("last")).with_for_update(of=schema.head)
_MOVE = (
    update(schema.head)
    .where(schema.head.c.size == bindparam("old"))
    .values(size=bindparam("new"), frontier=bindparam("roots"))
)


def read_head(connection: Connection) -> Head:
    """The head row as this transaction sees it."""
    return _head(connection, select(schema.head.c.size, schema.head.c.frontier))


def lock_head(connection: Connection) -> Head:
    """The head row; on a database with row locks it is locked for the rest of the transaction."""
    return _head(connection, _LOCK)


def _head(connection: Connection, query: Select[Any]) -> Head:
    row = connection.execute(query).one_or_none()
    if row is None or not isinstance(row.frontier, bytes) or len(row.frontier) % 32:
        raise IntegrityError("the head of the ledger is damaged")
    frontier = tuple(row.frontier[i : i + 32] for i in range(0, len(row.frontier), 32))
    return Head(row.size, frontier, (row[2] if len(row) > 2 else None) or "")


class StoredTree:
    """The nodes of the log as of `size` entries, from tiles and, where a tile is not full yet, from their parts.

    `node` is a `merkle.Node`. What it returns is a cache's word: callers compare the resulting root with a signed one.
    """

    def __init__(self, connection: Connection, size: int) -> None:
        self._connection = connection
        self._size = size
        self._rows: dict[tuple[int, int], Sequence[bytes]] = {}

    def node(self, level: int, index: int) -> bytes:
        """Hash of a complete subtree. Raises `IntegrityError` where the database lacks a part of it."""
        tile_level, height = divmod(level, 8)
        first = index << height
        row = self._row(tile_level, first // merkle.TILE)
        offset = first % merkle.TILE
        hashes = row[offset : offset + (1 << height)]
        if len(hashes) != 1 << height:
            raise IntegrityError("the ledger lacks a part of its tree")
        return merkle.subtree_root(hashes)

    def _row(self, level: int, n: int) -> Sequence[bytes]:
        if (level, n) not in self._rows:
            full = (n + 1) << 8 * (level + 1) <= self._size
            self._rows[level, n] = self._tile(level, n) if full else partial_tile(self._connection, level, n)
        return self._rows[level, n]

    def _tile(self, level: int, n: int) -> Sequence[bytes]:
        tile = schema.tile.c
        query = select(tile.hashes).where(tile.level == level, tile.n == n)
        data = self._connection.execute(query).scalar_one_or_none()
        if not isinstance(data, bytes) or len(data) != 32 * merkle.TILE:
            raise IntegrityError(f"tile {level}/{n} of the ledger is missing or damaged")
        return [data[i : i + 32] for i in range(0, len(data), 32)]


def partial_tile(connection: Connection, level: int, n: int) -> Sequence[bytes]:
    """The hashes there are of a tile: leaf hashes, or roots of the tiles one level below."""
    entry, tile = schema.entry.c, schema.tile.c
    first = n * merkle.TILE
    if level == 0:
        query = select(entry.leaf_hash).where(entry.idx.between(first, first + 255)).order_by(entry.idx)
    else:
        below = tile.n.between(first, first + 255)
        query = select(tile.root).where(tile.level == level - 1, below).order_by(tile.n)
    return connection.execute(query).scalars().all()


@dataclass(frozen=True, slots=True)
class Context:
    """What the entries of one transaction share."""

    origin: str
    clock: Clock
    actor: Actor
    reason: str | None
    policy_sha256: str | None
    body_public_key: bytes


class Appender:
    """Appends entries: locks the head, numbers and encodes leaves, and writes them all at once in `flush`."""

    def __init__(self, connection: Connection, context: Context) -> None:
        self._connection = connection
        self._context = context
        self._head = lock_head(connection)
        self._last = self._head.last
        self._entries: list[dict[str, Any]] = []
        self._body: tuple[int, SealedBody] | None = None

    def append(
        self,
        type_: str,
        facts: Mapping[str, Any],
        *,
        subject: str | None,
        event_id: str,
        rows: Sequence[dict[str, str]] = (),
    ) -> int:
        """Stage one entry and return its index."""
        check_facts(type_, facts)
        moment = timestamp(self._context.clock())
        self._note_regression(moment)
        return self._stage(type_, facts, subject, event_id, rows, moment)

    def flush(self) -> None:
        """Write the staged entries, the body, the tiles they fill and the head."""
        head, size = self._head, self._head.size + len(self._entries)
        hashes = [row["leaf_hash"] for row in self._entries]
        columns = dialect.ENTRY.split(", ")
        rows = [tuple(map(entry.__getitem__, columns)) for entry in self._entries]
        dialect.of(self._connection).insert_entries(self._connection, rows)
        if self._body is not None:
            index, body = self._body
            self._connection.execute(schema.body.insert(), {"idx": index, "sealed": body.sealed})
        self._write_tiles(head.size, size)
        frontier = b"".join(merkle.extend(head.frontier, head.size, hashes))
        if self._connection.execute(_MOVE, {"old": head.size, "new": size, "roots": frontier}).rowcount != 1:
            raise IntegrityError("the head of the ledger moved during a transaction")

    def _note_regression(self, moment: str) -> None:
        """Stage a `clock.regression` entry when the clock stepped back since the last time that was said."""
        if moment >= self._last or _parsed(self._last) - _parsed(moment) <= _TOLERATED:
            return
        observed = self._last_observed()
        if observed is None or moment < observed:
            facts = {"last": self._last, "observed": moment}
            self._stage("clock.regression", facts, None, new_event_id(), (), moment)

    def _last_observed(self) -> str | None:
        """Clock reading of the newest regression if the log's time has stood still since, else None."""
        entry = schema.entry.c
        staged = [row["leaf"] for row in self._entries if row["type"] == "clock.regression"]
        query = select(entry.leaf).where(entry.type == "clock.regression").order_by(entry.idx.desc()).limit(1)
        leaf = staged[-1] if staged else self._connection.execute(query).scalar_one_or_none()
        if leaf is None:
            return None
        facts = parse_leaf(leaf)["facts"]
        return str(facts["observed"]) if facts["last"] == self._last else None

    def _stage(
        self,
        type_: str,
        facts: Mapping[str, Any],
        subject: str | None,
        event_id: str,
        rows: Sequence[dict[str, str]],
        moment: str,
    ) -> int:
        index = self._head.size + len(self._entries)
        self._last = max(self._last, moment)
        context = self._context
        leaf = {
            "v": VERSION,
            "origin": context.origin,
            "index": index,
            "time": self._last,
            "boot_id": boot_id(),
            "actor": context.actor.pseudonym,
            "actor_auth": context.actor.auth,
            "type": type_,
            "event_id": event_id,
            "subject": subject,
            "policy_sha256": context.policy_sha256,
            "software": software(),
            "facts": dict(facts),
            "rows": list(rows),
            "body": self._body_of(index),
        }
        data = encode_leaf(leaf)
        self._entries.append(
            {
                "idx": index,
                "event_id": event_id,
                "leaf": data,
                "leaf_hash": merkle.leaf_hash(data),
                "type": type_,
                "ts": self._last,
                "subject": subject,
            }
        )
        return index

    def _body_of(self, index: int) -> dict[str, Any] | None:
        """The transaction's one body (name and reason), sealed with its first entry and shared by the others."""
        context = self._context
        private = {"name": context.actor.name, "reason": context.reason or ""}
        if self._body is None and any(private.values()):
            self._body = index, seal(private, context.body_public_key, context.origin)
        if self._body is None:
            return None
        first, body = self._body
        return {"index": first, "commitment": body.commitment, "sealed_sha256": body.sealed_sha256}

    def _write_tiles(self, old: int, new: int) -> None:
        """Write every tile that became full between the two sizes, lowest level first."""
        level, width = 0, merkle.TILE
        while new // width > old // width:
            tiles = []
            for n in range(old // width, new // width):
                hashes = partial_tile(self._connection, level, n)
                if len(hashes) != merkle.TILE:
                    raise IntegrityError("the ledger lacks a part of its tree")
                root = merkle.subtree_root(hashes)
                tiles.append({"level": level, "n": n, "root": root, "hashes": b"".join(hashes)})
            self._connection.execute(schema.tile.insert(), tiles)
            level, width = level + 1, width * merkle.TILE


def _parsed(moment: str) -> datetime:
    return datetime.fromisoformat(moment)
