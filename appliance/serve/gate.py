"""A gate admits so many requests to an engine at once; when the engine is taken out, whoever waits is told."""

from __future__ import annotations

import asyncio
from collections import deque


class Shut(Exception):
    """The engine was taken out of service before there was a place."""


class Gate:
    """Places at one engine, given in the order of asking."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    async def enter(self) -> None:
        """Wait for a place. Raises `Shut` if the engine is taken out meanwhile."""
        if self._free > 0:
            self._free -= 1
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and place.exception() is None:  # it was given, and not taken
                self.leave()
            raise
        finally:
            if place in self._waiting:
                self._waiting.remove(place)

    def leave(self) -> None:
        """Give a place back; who has waited longest gets it."""
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                return place.set_result(None)
        self._free += 1

    def shut(self) -> None:
        """Send away whoever waits."""
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_exception(Shut())
