"""How far a run may go before the ledger knows of it: the worker asks for each attempt, its supervisor permits them.

Two pipes, inherited by the worker that keeps the journal. Down one it names the attempt that it has journaled and is
about to sample; from the other it reads up to which attempt it may go, and waits until that is far enough. Each message
is one number of eight bytes. What was asked for stays in the pipe when the worker is killed, so its supervisor knows
how many attempts were made whatever becomes of the files. A worker whose supervisor is gone is permitted nothing.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from appliance.errors import Interrupted

VARIABLE = "APPLIANCE_PERMITS"
_BYTES = 8
_MOMENT_S = 0.02  # between the end of a worker's pipes and that of its process


@dataclass(slots=True)
class Permits:
    """The supervisor's ends.

    Attributes:
      inherited: the worker's ends, to be passed to it: where it reads, where it writes.
    """

    inherited: tuple[int, int]
    _asks: int
    _answers: int
    _asked: int = 0
    _permitted: int = 0
    _ended: bool = False

    def environment(self) -> dict[str, str]:
        """Say in the environment of a worker which of its descriptors the pipes are."""
        return {VARIABLE: ",".join(map(str, self.inherited))}

    def hand_over(self) -> None:
        """Close the worker's ends here, once a worker has them."""
        for descriptor in self.inherited:
            os.close(descriptor)
        self.inherited = (-1, -1)

    def permit(self, attempts: int) -> None:
        """Let the worker go up to this attempt. One that has ended needs no permit."""
        self._permitted = attempts
        with suppress(BrokenPipeError):
            os.write(self._answers, attempts.to_bytes(_BYTES, "big"))

    def asked(self) -> int:
        """Say the highest attempt that the worker ever asked for; what it asked before it died is read too."""
        with suppress(BlockingIOError):
            while message := os.read(self._asks, _BYTES):
                self._asked = max(self._asked, int.from_bytes(message, "big"))
            self._ended = True
        return self._asked

    def wait(self, seconds: float) -> None:
        """Wait until the worker has come as far as it is permitted, or so long."""
        deadline = time.monotonic() + seconds
        while not self._stands() and (left := deadline - time.monotonic()) > 0:
            select.select([self._asks], [], [], left)
        time.sleep(min(seconds, _MOMENT_S) if self._ended else 0)

    def _stands(self) -> bool:
        """Tell whether the worker goes no further: it waits for a permit, or has ended."""
        return self.asked() >= self._permitted or self._ended

    def _close(self) -> None:
        for descriptor in (self._asks, self._answers, *self.inherited):
            if descriptor >= 0:
                os.close(descriptor)


@contextmanager
def opened() -> Iterator[Permits]:
    """Open the pipes for one worker."""
    asks, asking = os.pipe()
    reading, answers = os.pipe()
    os.set_blocking(asks, False)
    permits = Permits((reading, asking), asks, answers)
    try:
        yield permits
    finally:
        permits._close()


def descriptors() -> tuple[int, ...]:
    """Name the worker's ends that this process has inherited; a launcher of ranks passes them on. None: none."""
    reading, _, asking = os.environ.get(VARIABLE, "").partition(",")
    return (int(reading), int(asking)) if reading.isdigit() and asking.isdigit() else ()


@dataclass(slots=True)
class Permitted:
    """The worker's ends.

    Attributes:
      attempts: up to which attempt it may go, as it was told last.
    """

    _answers: int
    _asks: int
    attempts: int = 0

    @staticmethod
    def inherited() -> Permitted:
        """Take the ends that the environment names.

        Raises:
          Interrupted: there are none: nobody supervises this process.
        """
        ends = descriptors()
        if not ends:
            raise Interrupted("nobody supervises this run, so no attempt is permitted")
        return Permitted(*ends)

    def ask(self, attempt: int) -> None:
        """Name an attempt, and wait until it is permitted.

        Raises:
          Interrupted: the supervisor is gone.
        """
        try:
            os.write(self._asks, attempt.to_bytes(_BYTES, "big"))
            while self.attempts < attempt:
                message = os.read(self._answers, _BYTES)
                if len(message) < _BYTES:
                    raise Interrupted("the supervisor is gone")
                self.attempts = max(self.attempts, int.from_bytes(message, "big"))
        except BrokenPipeError:
            raise Interrupted("the supervisor is gone") from None
