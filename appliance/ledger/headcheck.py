"""Signed tree heads against the tree that is being recomputed, and the anchor against both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Connection

from appliance.errors import IntegrityError
from appliance.ledger.database import stream
from appliance.ledger.note import VerifierKey, open_checkpoint
from appliance.ledger.problems import Problems


class HeadCheck:
    """Walks the tree heads beside the entries: `reached` is called when the tree has the size `wanted`.

    Attributes:
      wanted: size of the next tree head or of the anchor; None when there is none left.
      good_size: size of the newest tree head that holds.
      anchored_size: size of the anchor if it holds, else 0.
      largest: largest size that anything was signed at.
    """

    def __init__(
        self,
        connection: Connection,
        trusted: Sequence[VerifierKey],
        anchored: tuple[str, int, bytes] | None,
        problems: Problems,
    ) -> None:
        self.good_size = 0
        self.anchored_size = 0
        self._trusted = trusted
        self._anchor = anchored
        self._problems = problems
        self._rows: Iterator[tuple[Any, ...]] = stream(connection, "SELECT n, size, note FROM tree_head ORDER BY n")
        self._n = 0
        self._last_note: tuple[int, str] = (0, "")
        newest = [row[0] for row in stream(connection, "SELECT max(size) FROM tree_head") if type(row[0]) is int]
        self.largest: int = max([anchored[1] if anchored else 0, *newest])
        self._row = self._advance()
        self._anchor_pending = anchored is not None
        self.wanted = self._next_size()

    def reached(self, size: int, root: bytes) -> None:
        """Compare the tree heads and the anchor of this size with the recomputed root."""
        note = None
        if self._row and self._row[0] == size:
            note = self._row[1]
            self._check(size, note, root)
            self._row = self._advance()
        if self._anchor is not None and self._anchor_pending and self._anchor[1] == size:
            self._anchor_pending = False
            self._check_anchor(size, note, root)
        self.wanted = self._next_size()

    def finish(self, size: int) -> None:
        """Whatever was not reached was signed at a size that the log does not have any more."""
        while self._row:
            self._problems.add(f"a tree head of {self._row[0]} entries was signed, there are {size}", size)
            self._row = self._advance()
        if self._anchor is not None and self._anchor_pending:
            missing = f"entries {size} to {self._anchor[1] - 1} are missing"
            self._problems.add(f"the database is behind its anchor: {missing}", size)
        if self._n == 0:
            self._problems.add("no tree head was ever signed")

    def _next_size(self) -> int | None:
        sizes = [self._row[0]] if self._row else []
        if self._anchor is not None and self._anchor_pending:
            sizes.append(self._anchor[1])
        return min(sizes, default=None)

    def _check(self, size: int, note: str, root: bytes) -> None:
        try:
            checkpoint = open_checkpoint(note, self._trusted, exact=True)
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

    def _check_anchor(self, size: int, note: str | None, root: bytes) -> None:
        assert self._anchor is not None  # noqa: S101
        if self._anchor[2] != root:
            self._problems.add_span(f"the first {size} entries are not those that were anchored", self.good_size, size)
            return
        self.anchored_size = size
        if note != self._anchor[0]:
            self._problems.add(f"the tree head of {size} entries is not the one that was anchored")

    def _advance(self) -> tuple[int, str] | None:
        """The next tree head as (size, note); rows that cannot be one are reported and skipped."""
        for n, size, note in self._rows:
            expected, self._n = self._n, self._n + 1
            right_types = (type(n), type(size), type(note)) == (int, int, str)
            if not right_types or n != expected or size <= self._last_note[0]:
                self._problems.add(f"tree head {expected} is missing or was altered")
                continue
            self._last_note = (size, note)
            return size, note
        return None
