"""How many records are computed at once: the row counts that a micro-batch may have, and how records are dealt out.

Kernels choose how they compute by the shapes they are given, so a record's last bits may follow the row count. A
micro-batch therefore has one of a few counts that `train.coupling` has proved to give the same bits; what is missing
to such a count is filled up with rows that are ignored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import torch

Counts = tuple[int, ...]
"""Row counts, largest first."""

ALONE: Counts = (1,)


@dataclass(frozen=True, slots=True)
class RowCounts:
    """The row counts that are proved for each padded length; a length that is not among them is computed alone.

    Attributes:
      proved: padded length to its counts.
      shared: whether supervised positions of several records may share a piece of the head's product.
      bits: padded length to the SHA-256 (hex) of the bits that the proof saw: equal where two processes compute alike.
    """

    proved: Mapping[int, Counts]
    shared: bool = True
    bits: Mapping[int, str] = field(default_factory=dict)

    def at(self, length: int) -> Counts:
        """Find the counts for a padded length."""
        return self.proved.get(length, ALONE)

    def digest(self) -> bytes:
        """Digest all of it by SHA-256, 32 bytes."""
        found = [(length, counts, self.bits.get(length)) for length, counts in sorted(self.proved.items())]
        return hashlib.sha256(repr((self.shared, found)).encode()).digest()


def candidates(most: int) -> Counts:
    """List the counts to be tried where so many rows fit: all of them, and every smaller power of two."""
    return tuple(sorted({most, *(1 << n for n in range(most.bit_length()) if 1 << n <= most)}, reverse=True))


def overhead(device: torch.device) -> int:
    """Say what a micro-batch costs besides its tokens, in tokens: many small ones are slow, above all on a GPU."""
    return 32 if device.type == "cpu" else 4096


def deal(records: int, counts: Counts, length: int, extra: int) -> list[int]:
    """Choose the row counts of the micro-batches that compute so many records at the least cost, largest first.

    Args:
      records: how many there are.
      counts: the counts that a micro-batch may have.
      length: tokens of a row.
      extra: cost of a micro-batch besides its tokens, in tokens.
    """
    whole, rest = divmod(records, counts[0])
    return [counts[0]] * whole + list(_cheapest(rest, counts, length, extra)[1])


@lru_cache(maxsize=4096)
def _cheapest(records: int, counts: Counts, length: int, extra: int) -> tuple[int, Counts]:
    """Find (cost, row counts) of the cheapest micro-batches that hold so many records."""
    if not records:
        return 0, ()
    found = []
    for count in counts:
        cost, rest = _cheapest(max(0, records - count), counts, length, extra)
        found.append((cost + count * length + extra, tuple(sorted((count, *rest), reverse=True))))
    return min(found)
