"""Two pipes between a supervisor and its worker: the supervisor's ends, and those that the worker inherits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeVar

P = TypeVar("P", bound="Pipes")
_PIECE = 1 << 16
_MOST = 1 << 20
"""Bytes that are taken in one go: as many as a pipe holds at most (`fs.pipe-max-size`), so nothing of a worker that
has ended is left behind, and a worker that never stops keeps nobody busy."""


@dataclass(slots=True)
class Pipes:
    """The supervisor's ends.

    Attributes:
      inherited: the worker's ends, to be passed to it: where it reads, where it writes.
      variable: of the environment, in which the worker finds them.
      reads: where the supervisor reads; it never waits there.
      writes: where it writes.
      ended: whether the worker has closed its end.
      unread: bytes that were taken and not yet looked at.
    """

    inherited: tuple[int, int]
    variable: str
    reads: int
    writes: int
    ended: bool = False
    unread: bytearray = field(default_factory=bytearray)

    def environment(self) -> dict[str, str]:
        """Say in the environment of a worker which of its descriptors the pipes are."""
        return {self.variable: ",".join(map(str, self.inherited))}

    def hand_over(self) -> None:
        """Close the worker's ends here, once a worker has them."""
        for descriptor in self.inherited:
            os.close(descriptor)
        self.inherited = (-1, -1)

    def fill(self) -> None:
        """Take what the worker has said into `unread`, but no more at a time than a pipe holds."""
        with suppress(BlockingIOError):
            for _ in range(_MOST // _PIECE):
                piece = os.read(self.reads, _PIECE)
                self.unread += piece
                if not piece:
                    self.ended = True
                    return

    def wait(self, seconds: float) -> None:
        """Wait until the worker has said something, or so long. What counts as something is the kind's to say."""
        raise NotImplementedError

    def close(self) -> None:
        """Close all ends that are open here."""
        for descriptor in (self.reads, self.writes, *self.inherited):
            if descriptor >= 0:
                os.close(descriptor)


@contextmanager
def opened(kind: type[P], variable: str) -> Iterator[P]:
    """Open the pipes for one worker."""
    reads, writing = os.pipe()
    reading, writes = os.pipe()
    os.set_blocking(reads, False)
    made = kind((reading, writing), variable, reads, writes)
    try:
        yield made
    finally:
        made.close()


def find_inherited(variable: str) -> tuple[int, int] | None:
    """Find the worker's ends that this process has inherited: where it reads, where it writes."""
    reading, _, writing = os.environ.get(variable, "").partition(",")
    return (int(reading), int(writing)) if reading.isdigit() and writing.isdigit() else None
