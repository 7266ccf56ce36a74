"""Collects what a verification finds wrong, in bounded memory."""

from __future__ import annotations

_KEPT = 100


class Problems:
    """Messages in the order they were found, and the first entry that is bad."""

    def __init__(self) -> None:
        self._messages: list[str] = []
        self._count = 0
        self._first: int | None = None
        self._span: tuple[int, int] | None = None

    def add(self, message: str, index: int | None = None) -> None:
        """Note a problem; `index` is the first entry that it concerns, where one can be named."""
        self._count += 1
        if len(self._messages) < _KEPT:
            self._messages.append(message)
        if index is not None and (self._first is None or index < self._first):
            self._first = index

    def add_span(self, message: str, start: int, end: int) -> None:
        """Note a problem of which only the stretch of entries is known: some entry of [start, end)."""
        self.add(message)
        if self._span is None:
            self._span = (start, end)

    @property
    def first_bad(self) -> int | None:
        """The smallest bad index; the start of the first bad stretch if nothing in it is known more exactly."""
        if self._span is None or (self._first is not None and self._first < self._span[1]):
            return self._first
        return self._span[0]

    @property
    def messages(self) -> tuple[str, ...]:
        """The first hundred messages, and how many more there were."""
        more = self._count - len(self._messages)
        return (*self._messages, f"and {more} more") if more else tuple(self._messages)
