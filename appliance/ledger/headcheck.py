"""Signed tree heads against the tree that is being recomputed: the database's own, the anchor, others kept apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from appliance.errors import IntegrityError
from appliance.ledger.database import stream
from appliance.ledger.keyring import Keyring
from appliance.ledger.problems import Problems


@dataclass(frozen=True, slots=True)
class OutsideHead:
    """A signed tree head that was kept outside the database.

    Attributes:
      anchor: whether it is the anchor, which follows every head that is signed.
      note: the signed note; its signatures were checked.
      size: its entries.
      root: its root, 32 bytes.
    """

    anchor: bool
    note: str
    size: int
    root: bytes


class HeadCheck:
    """Walks the tree heads beside the entries: `reached` is called when the tree has the size `wanted`.

    Attributes:
      wanted: size of the next tree head, here or outside; None when there is none left.
      good_size: size of the newest tree head that holds.
      anchored_size: size of the anchor if it holds, else 0.
      outside_size: size of the largest head from elsewhere, the anchor aside, that holds.
      largest: largest size that anything was signed at.
      fork: two notes that the log's keys signed and that cannot both be true; empty where none were seen.
    """

    def __init__(
        self,
        connection: Connection,
        ring: Keyring,
        outside: Sequence[OutsideHead],
        problems: Problems,
    ) -> None:
        self.good_size = 0
        self.anchored_size = 0
        self.outside_size = 0
        self.fork: tuple[str, ...] = ()
        self._ring = ring
        self._outside = sorted(outside, key=lambda head: head.size)
        self._disputed = ""
        self._problems = problems
        self._rows: Iterator[tuple[Any, ...]] = stream(connection, "SELECT n, size, note FROM tree_head ORDER BY n")
        self._n = 0
        self._last_note: tuple[int, str] = (0, "")
        newest = [row[0] for row in stream(connection, "SELECT max(size) FROM tree_head") if type(row[0]) is int]
        self.largest: int = max([*(head.size for head in outside), *newest], default=0)
        self._row = self._advance()
        self.wanted = self._next_size()

    def reach(self, size: int, root: bytes) -> None:
        """Compare the tree heads of this size, here and outside, with the recomputed root."""
        note = None
        if self._row and self._row[0] == size:
            note = self._row[1]
            self._check(size, note, root)
            self._row = self._advance()
        while self._outside and self._outside[0].size == size:
            self._check_outside(self._outside.pop(0), note, root)
        if note is not None and self._disputed and self.good_size == size and not self.fork:
            self.fork = self._disputed, note
        self.wanted = self._next_size()

    def finish(self, size: int) -> None:
        """Report what was not reached: it was signed at a size that the log does not have any more."""
        while self._row:
            self._problems.add(f"a tree head of {self._row[0]} entries was signed, there are {size}", size)
            self._row = self._advance()
        for head in self._outside:
            missing = f"entries {size} to {head.size - 1} are missing"
            behind = "its anchor" if head.anchor else "a tree head that was kept elsewhere"
            self._problems.add(f"the database is behind {behind}: {missing}", size)
        if self._n == 0:
            self._problems.add("no tree head was ever signed")

    def _next_size(self) -> int | None:
        sizes = [self._row[0]] if self._row else []
        return min([*sizes, *(head.size for head in self._outside[:1])], default=None)

    def _check(self, size: int, note: str, root: bytes) -> None:
        try:
            checkpoint = self._ring.open(note)
        except IntegrityError as error:
            self._problems.add(f"the tree head of {size} entries: {error.message}")
            return
        if checkpoint.size != size:
            self._problems.add(f"the tree head of {size} entries was signed for another size")
        elif checkpoint.root != root:
            span = f"entries {self.good_size} to {size - 1}"
            self._problems.add_span(f"{span} are not those that were signed", self.good_size, size)
        else:
            self.good_size = size

    def _check_outside(self, head: OutsideHead, note: str | None, root: bytes) -> None:
        done = "anchored" if head.anchor else "signed in a tree head that was kept elsewhere"
        if head.root != root:
            message = f"the first {head.size} entries are not those that were {done}"
            self._problems.add_span(message, self.good_size if note is None else 0, head.size)
            self._disputed = head.note
        elif head.anchor:
            self.anchored_size = head.size
            if note != head.note:
                self._problems.add(f"the tree head of {head.size} entries is not the one that was anchored")
        else:
            self.outside_size = head.size

    def _advance(self) -> tuple[int, str] | None:
        """Read the next tree head as (size, note); rows that cannot be one are reported and skipped."""
        for n, size, note in self._rows:
            expected, self._n = self._n, self._n + 1
            right_types = (type(n), type(size), type(note)) == (int, int, str)
            if not right_types or n != expected or size <= self._last_note[0]:
                self._problems.add(f"tree head {expected} is missing or was altered")
                continue
            self._last_note = (size, note)
            return size, note
        return None
