"""How long something that goes on in steps will still take, however slow its steps are."""

from __future__ import annotations

import time
from collections.abc import Callable


class Pace:
    """Follows steps as they are done. What was done before the first look, in an earlier start, took no time here."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = self._changed = clock()
        self._first: int | None = None
        self._done = self._total = 0

    def update(self, done: int, total: int) -> None:
        """Note how many steps of how many are done; a total of 0 is one that is not known."""
        if self._first is None:
            self._first = done
        if done != self._done:
            self._changed = self._clock()
        self._done, self._total = done, total

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return self._clock() - self._began

    @property
    def left(self) -> float | None:
        """Seconds that are left if all steps take what those so far took; None before one is done, or without a total.

        They run down while a step lasts, and stop at what the steps behind it will take.
        """
        made = self._done - (self._first or 0)
        steps = self._total - self._done
        if made < 1 or not self._total:
            return None
        each = (self._changed - self._began) / made
        return max(each * steps - (self._clock() - self._changed), each * max(0, steps - 1))


def words(seconds: float) -> str:
    """Write seconds as hours, minutes and seconds.

    >>> words(3725.4)
    '1:02:05'
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
