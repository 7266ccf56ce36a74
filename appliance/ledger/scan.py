"""The pass over entries: each column against its leaf, each leaf into the tree, each body against its leaf."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import orjson
from sqlalchemy import Connection

from appliance.errors import ApplianceError
from appliance.events.ledger import LedgerRekeyed
from appliance.ledger import merkle
from appliance.ledger.bodies import BodyVerdict, unseal
from appliance.ledger.database import stream
from appliance.ledger.headcheck import HeadCheck
from appliance.ledger.leaf import VERSION
from appliance.ledger.problems import Problems

Covered = dict[tuple[str, str], tuple[int, str, str]]


class BodyScan:
    """Walks the bodies beside the entries; both are ordered by index, so neither is held in memory."""

    def __init__(self, connection: Connection, origin: str, key: bytes | None, problems: Problems) -> None:
        self.verdicts: Counter[str] = Counter()
        self._bodies: Iterator[tuple[Any, ...]] = stream(connection, "SELECT idx, sealed FROM body ORDER BY idx")
        self._next = next(self._bodies, None)
        self._origin = origin
        self._key = key
        self._problems = problems
        self._current: tuple[Any, BodyVerdict] = (None, BodyVerdict.MISSING)
        self._missing: Counter[int] = Counter()
        self._erased: set[str] = set()

    def entry(self, index: int, stated: Any) -> None:
        """Check what the leaf at `index` states of its body, where it has one."""
        if stated != self._current[0]:
            self._current = stated, self._judge(index, stated)
        verdict = self._current[1]
        if verdict is BodyVerdict.MISSING:
            self._missing[stated["index"] if type(stated["index"]) is int else index] += 1
        else:
            self.verdicts[verdict] += 1

    def note_erased(self, subject: str | None) -> None:
        """Note that an entry says that a body was erased."""
        if subject is not None:
            self._erased.add(subject)

    def finish(self) -> None:
        """Judge the missing bodies and those that no entry has."""
        self._skip_to(None)
        for index, count in self._missing.items():
            if str(index) in self._erased:
                self.verdicts[BodyVerdict.ERASED] += count
            else:
                self.verdicts[BodyVerdict.MISSING] += count
                self._problems.add(f"the body of entry {index} is missing or was altered", index)

    def _judge(self, index: int, stated: dict[str, Any]) -> BodyVerdict:
        if stated["index"] != index:
            self._problems.add(f"entry {index} states the body of another entry", max(0, index))
            return BodyVerdict.MISSING
        self._skip_to(index)
        if self._next is None or self._next[0] != index:
            return BodyVerdict.MISSING
        sealed, self._next = self._next[1], next(self._bodies, None)
        if type(sealed) is not bytes or sha256(sealed).hexdigest() != stated["sealed_sha256"]:
            self._erased.discard(str(index))
            return BodyVerdict.MISSING
        if self._key is None:
            return BodyVerdict.SEALED
        try:
            unseal(sealed, stated["commitment"], self._key, self._origin)
        except ApplianceError as error:
            self._problems.add(f"the body of entry {index}: {error.message}", index)
            return BodyVerdict.SEALED
        return BodyVerdict.OK

    def _skip_to(self, index: int | None) -> None:
        while self._next is not None and (index is None or type(self._next[0]) is not int or self._next[0] < index):
            stray = self._next[0] if type(self._next[0]) is int else 0
            self._problems.add(f"there is a body of entry {stray}, which has none", max(0, stray))
            self._next = next(self._bodies, None)


class Scan:
    """Takes the rows of `entry` in order; what is wrong goes to `problems`.

    Attributes:
      size: entries seen.
      covered: for each business row (table, key) the last entry that covers it: (index, event id, SHA-256).
    """

    def __init__(
        self, connection: Connection, origin: str, bodies: BodyScan, heads: HeadCheck, problems: Problems
    ) -> None:
        self.size = 0
        self.covered: Covered = {}
        self._connection = connection
        self._origin = origin
        self._bodies = bodies
        self._heads = heads
        self._problems = problems
        self._builder = merkle.Builder()
        self._tiles = 0
        self._expected = 0
        self._last_time = ""

    @property
    def root(self) -> bytes:
        """Root over the entries seen."""
        return self._builder.root()

    def entry(self, row: tuple[Any, ...]) -> None:
        """Check one row of `entry` and hash it into the tree."""
        index, _, leaf, digest, _, _, _ = row
        if index != self._expected or type(index) is not int:
            index = self._report_misplaced(index)
        self._expected = index + 1 if index >= self._expected else self._expected + 1
        data = leaf if type(leaf) is bytes else b""
        computed = sha256(b"\x00" + data).digest()  # `merkle.leaf_hash`, here for speed
        if computed != digest or data is not leaf:
            self._problems.add(f"entry {index} was altered", max(0, index))
        try:
            self._columns(row, orjson.loads(data))
        except (KeyError, TypeError, ValueError):
            self._problems.add(f"entry {index} holds no leaf", max(0, index))
        for tile in self._builder.push(computed):
            self._tile(tile)
        self.size += 1
        if self.size == self._heads.wanted:
            self._heads.reach(self.size, self.root)

    def _report_misplaced(self, index: Any) -> int:
        """Report an entry that does not follow the one before it; returns the index to take it for."""
        if type(index) is not int:  # only where the definition of the table was altered
            self._problems.add(f"entry {self._expected} was altered", self._expected)
            return self._expected
        self._problems.add(f"entry {self._expected} is missing", min(self._expected, max(0, index)))
        return index

    def finish(self) -> None:
        """Check what can be judged only at the end: the head, the number of tiles, bodies and tree heads."""
        stored = list(stream(self._connection, "SELECT id, size, frontier FROM head"))
        if stored != [(1, self.size, b"".join(self._builder.frontier()))]:
            self._problems.add("the stored head of the log is not what its entries give", None)
        if list(stream(self._connection, "SELECT count(*) FROM tile")) != [(self._tiles,)]:
            self._problems.add("there are tiles that no entries give")
        self._bodies.finish()
        self._heads.finish(self.size)

    def _columns(self, row: tuple[Any, ...], leaf: dict[str, Any]) -> None:
        index, event_id, _, _, kind, moment, subject = row
        if (
            leaf["index"] != index
            or leaf["event_id"] != event_id
            or leaf["type"] != kind
            or leaf["time"] != moment
            or leaf["subject"] != subject
            or leaf["origin"] != self._origin
            or leaf["v"] != VERSION
        ):
            self._problems.add(f"entry {index} is not the entry that its leaf describes", max(0, index))
        if moment < self._last_time:
            self._problems.add(f"entry {index} is dated before the entry before it", max(0, index))
        self._last_time = moment
        for covered in leaf["rows"]:
            self.covered[covered["table"], covered["key"]] = (index, event_id, covered["sha256"])
        if kind == LedgerRekeyed.type and leaf["facts"]["root"] != self.root.hex():
            self._problems.add(f"entry {index} changes the signing keys of another history", max(0, index))
        if kind == "body.erased":
            self._bodies.note_erased(subject)
        if (body := leaf["body"]) is not None:
            self._bodies.entry(index, body)

    def _tile(self, tile: merkle.Tile) -> None:
        self._tiles += 1
        query = "SELECT level, n, root, hashes FROM tile WHERE level = ? AND n = ?"
        stored = list(stream(self._connection, query, tile.level, tile.n))
        if stored == [tuple(tile)]:
            return
        first = tile.n * merkle.TILE
        if tile.level == 0 and stored and type(stored[0][3]) is bytes:
            pairs = enumerate(zip(_chunks(tile.hashes), _chunks(stored[0][3]), strict=False))
            first += next((i for i, (ours, theirs) in pairs if ours != theirs), 0)
        else:
            first <<= 8 * tile.level
        self._problems.add(f"tile {tile.level}/{tile.n} is not what its entries give", first)


def _chunks(data: bytes) -> list[bytes]:
    return [data[i : i + 32] for i in range(0, len(data), 32)]
