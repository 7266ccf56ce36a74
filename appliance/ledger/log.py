"""The log in the database: reading its head and nodes, and appending entries at the end of a transaction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection

from appliance.errors import IntegrityError
from appliance.events.event import Event
from appliance.events.ledger import ClockRegression
from appliance.ledger import dialect, merkle
from appliance.ledger.bodies import SealedBody, seal
from appliance.ledger.canonical import check, check_texts
from appliance.ledger.dialect import Statement
from appliance.ledger.leaf import VERSION, Actor, boot_id, encode_leaf, new_event_id, parse_leaf, software, timestamp

Clock = Callable[[], datetime]
_TOLERATED = timedelta(seconds=2)  # how far a clock may step back before the ledger says so


def now() -> datetime:
    """Read the clock of the machine."""
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


_READ = "SELECT size, frontier FROM head"
_LOCK = "SELECT size, frontier, (SELECT ts FROM entry WHERE idx = size - 1) FROM head"
_MOVE = "UPDATE head SET size = ?, frontier = ? WHERE size = ? RETURNING size"
_ROOTS = "SELECT root FROM tile WHERE level = ? AND n BETWEEN ? AND ? ORDER BY n"
_TILE = "INSERT INTO tile (level, n, root, hashes) VALUES (?, ?, ?, ?)"
_REGRESSION = "SELECT leaf FROM entry WHERE type = 'clock.regression' ORDER BY idx DESC LIMIT 1"
_BODY = "INSERT INTO body (idx, sealed) VALUES (?, ?)"


def read_head(connection: Connection) -> Head:
    """Read the head row as this transaction sees it."""
    return _head(dialect.of(connection).run(connection, [(_READ, ())]))


def lock_head(connection: Connection, before: Sequence[Statement] = ()) -> Head:
    """Read the head row; on a database with row locks it is locked for the rest of the transaction.

    `before` are statements that run first, in the same round trip.
    """
    kind = dialect.of(connection)
    return _head(kind.run(connection, [*before, (_LOCK + kind.FOR_UPDATE, ())]))


def _head(rows: dialect.Rows) -> Head:
    size, frontier, *rest = rows[0] if len(rows) == 1 else (None, None)
    if type(size) is not int or not isinstance(frontier, bytes) or len(frontier) % 32:
        raise IntegrityError("the head of the ledger is damaged")
    roots = tuple(frontier[i : i + 32] for i in range(0, len(frontier), 32))
    return Head(size, roots, rest[0] or "" if rest else "")


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
        query = "SELECT hashes FROM tile WHERE level = ? AND n = ?"
        data = next((row[0] for row in dialect.of(self._connection).run(self._connection, [(query, (level, n))])), None)
        if not isinstance(data, bytes) or len(data) != 32 * merkle.TILE:
            raise IntegrityError(f"tile {level}/{n} of the ledger is missing or damaged")
        return [data[i : i + 32] for i in range(0, len(data), 32)]


def partial_tile(connection: Connection, level: int, n: int) -> Sequence[bytes]:
    """Read the hashes there are of a tile: leaf hashes, or roots of the tiles one level below."""
    first = n * merkle.TILE
    query, parameters = "SELECT leaf_hash FROM entry WHERE idx BETWEEN ? AND ? ORDER BY idx", [first, first + 255]
    if level:
        query, parameters = _ROOTS, [level - 1, *parameters]
    return [digest for (digest,) in dialect.of(connection).run(connection, [(query, parameters)])]


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

    def __init__(self, connection: Connection, context: Context, before: Sequence[Statement] = ()) -> None:
        self._connection = connection
        self._context = context
        self._head = lock_head(connection, before)
        self._last = self._head.last
        self._entries: list[tuple[Any, ...]] = []  # columns of `dialect.ENTRY`
        self._body: tuple[int, SealedBody] | None = None

    def append(self, event: Event, *, event_id: str = "", rows: Sequence[dict[str, str]] = ()) -> int:
        """Stage one entry and return its index; `event_id` is drawn unless rows are covered under it."""
        moment = timestamp(self._context.clock())
        self._note_regression(moment)
        return self._stage(event, event_id or new_event_id(), rows, moment)

    def flush(self) -> Head:
        """Write the staged entries, the body, the tiles they fill and the head, which is the log's end then."""
        head, size = self._head, self._head.size + len(self._entries)
        kind = dialect.of(self._connection)
        statements = kind.insert(self._entries)
        if self._body is not None:
            statements.append((_BODY, (self._body[0], self._body[1].sealed)))
        if size // merkle.TILE > head.size // merkle.TILE:
            kind.run(self._connection, statements)
            statements = []
            self._write_tiles(head.size, size)
        frontier = merkle.extend(head.frontier, head.size, [row[3] for row in self._entries])
        if kind.run(self._connection, [*statements, (_MOVE, (size, b"".join(frontier), head.size))]) != [(size,)]:
            raise IntegrityError("the head of the ledger moved during a transaction")
        return Head(size, tuple(frontier))

    def flush_regression(self) -> None:
        """Say by itself, and write, that the clock stepped back, where it did."""
        self._note_regression(timestamp(self._context.clock()))
        if self._entries:
            self.flush()

    def _note_regression(self, moment: str) -> None:
        """Stage a `clock.regression` entry when the clock stepped back since the last time that was said."""
        if moment >= self._last or _parse(self._last) - _parse(moment) <= _TOLERATED:
            return
        observed = self._last_observed()
        if observed is None or moment < observed:
            self._stage(ClockRegression(last=self._last, observed=moment), new_event_id(), (), moment)

    def _last_observed(self) -> str | None:
        """Find the clock reading of the newest regression if the log's time has stood still since, else None."""
        leaves = [row[2] for row in self._entries if row[4] == "clock.regression"]
        leaves = leaves or [row[0] for row in dialect.of(self._connection).run(self._connection, [(_REGRESSION, ())])]
        if not leaves:
            return None
        facts = parse_leaf(leaves[-1])["facts"]
        return str(facts["observed"]) if facts["last"] == self._last else None

    def _stage(self, event: Event, event_id: str, rows: Sequence[dict[str, str]], moment: str) -> int:
        facts = event.facts()
        check(facts, event.type)
        check_texts(facts, event.type)
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
            "type": event.type,
            "event_id": event_id,
            "subject": event.subject,
            "policy_sha256": context.policy_sha256,
            "software": software(),
            "facts": facts,
            "rows": list(rows),
            "body": self._body_of(index),
        }
        data = encode_leaf(leaf)
        self._entries.append((index, event_id, data, merkle.leaf_hash(data), event.type, self._last, event.subject))
        return index

    def _body_of(self, index: int) -> dict[str, Any] | None:
        """Seal the transaction's one body (name and reason) with its first entry; the others share it."""
        context = self._context
        private = {"name": context.actor.name, "reason": context.reason or ""}
        check_texts(private, "the body")
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
            tiles: list[Statement] = []
            for n in range(old // width, new // width):
                hashes = partial_tile(self._connection, level, n)
                if len(hashes) != merkle.TILE:
                    raise IntegrityError("the ledger lacks a part of its tree")
                tiles.append((_TILE, (level, n, merkle.subtree_root(hashes), b"".join(hashes))))
            dialect.of(self._connection).run(self._connection, tiles)
            level, width = level + 1, width * merkle.TILE


def _parse(moment: str) -> datetime:
    return datetime.fromisoformat(moment)
