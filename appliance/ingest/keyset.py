"""A set of 16-byte keys in 16 bytes a slot, filled many keys at a time; a Python set takes six times as much."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_MOST_FULL = 0.6


class KeySet:
    """Open addressing with linear probing over a NumPy array. Keys are uniformly distributed, as hashes are."""

    def __init__(self) -> None:
        self._table: NDArray[np.uint64] = np.zeros((1 << 12, 2), np.uint64)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, keys: bytes) -> list[bool]:
        """Add keys, 16 bytes each, and say for each whether it is new; of equal new ones the first is.

        Memory: 27 to 54 bytes a key, half as much again while the table grows.
        """
        rows = np.frombuffer(keys, np.uint64).reshape(-1, 2).copy()
        rows[:, 0] |= rows[:, 0] == 0  # a slot that begins with zero is free
        while self._size + len(rows) > _MOST_FULL * len(self._table):
            self._grow()
        new = self._insert(rows)
        self._size += int(new.sum())
        found: list[bool] = new.tolist()
        return found

    def _grow(self) -> None:
        old = self._table
        self._table = np.zeros((2 * len(old), 2), np.uint64)
        for start in range(0, len(old), 1 << 16):
            block = old[start : start + (1 << 16)]
            self._insert(block[block[:, 0] != 0])

    def _insert(self, rows: NDArray[np.uint64]) -> NDArray[np.bool_]:
        table, mask = self._table, np.uint64(len(self._table) - 1)
        new = np.zeros(len(rows), bool)
        pending = np.arange(len(rows))
        slots = rows[:, 0] & mask
        while len(pending):
            at = slots[pending]
            free = np.flatnonzero(table[at, 0] == 0)
            _, first = np.unique(at[free], return_index=True)
            winners = pending[free[first]]
            table[slots[winners]] = rows[winners]
            new[winners] = True
            # Now every slot is taken: by the key itself, or by another, and then the next slot is tried.
            pending = pending[(table[at] != rows[pending]).any(axis=1)]
            slots[pending] = (slots[pending] + np.uint64(1)) & mask
        return new
