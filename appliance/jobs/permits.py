"""How far a run may go before the ledger knows of it: the worker asks for each attempt, its supervisor permits them.

Two pipes, inherited by the worker that keeps the journal. Down one it names the attempt that it has journaled and is
about to sample; from the other it reads up to which attempt it may go, and waits until that is far enough. Each message
is one number of eight bytes. What was asked for stays in the pipe when the worker is killed, so its supervisor knows
how many attempts were made whatever becomes of the files. A worker whose supervisor is gone is permitted nothing.
"""

from __future__ import annotations

import os
import select
import struct
import time
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass

from appliance.errors import Interrupted
from appliance.jobs import pipes

VARIABLE = "APPLIANCE_PERMITS"
_BYTES = 8
_NUMBER = struct.Struct(">Q")
_MOMENT_S = 0.02  # between the end of a worker's pipes and that of its process


@dataclass(slots=True)
class Permits(pipes.Pipes):
    """The supervisor's ends."""

    _asked: int = 0
    _permitted: int = 0

    def permit(self, attempts: int) -> None:
        """Let the worker go up to this attempt. One that has ended needs no permit."""
        self._permitted = attempts
        with suppress(BrokenPipeError):
            os.write(self.writes, attempts.to_bytes(_BYTES, "big"))

    def asked(self) -> int:
        """Say the highest attempt that the worker ever asked for; what it asked before it died is read too."""
        self.fill()
        whole = len(self.unread) // _BYTES * _BYTES
        self._asked = max([self._asked, *(number for (number,) in _NUMBER.iter_unpack(self.unread[:whole]))])
        del self.unread[:whole]
        return self._asked

    def wait(self, seconds: float) -> None:
        """Wait until the worker has come as far as it is permitted, or so long."""
        deadline = time.monotonic() + seconds
        while not self._stands() and (left := deadline - time.monotonic()) > 0:
            select.select([self.reads], [], [], left)
        time.sleep(min(seconds, _MOMENT_S) if self.ended else 0)

    def _stands(self) -> bool:
        """Tell whether the worker goes no further: it waits for a permit, or has ended."""
        return self.asked() >= self._permitted or self.ended


def opened() -> AbstractContextManager[Permits]:
    """Open the pipes for one worker."""
    return pipes.opened(Permits, VARIABLE)


def descriptors() -> tuple[int, ...]:
    """Name the worker's ends that this process has inherited; a launcher of ranks passes them on. None: none."""
    return pipes.find_inherited(VARIABLE) or ()


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
