"""What a worker and its supervisor tell each other that must stand in no file: prompts, and text that a model wrote.

Two pipes, inherited by the worker. A message is a JSON value behind its length in four bytes, and ends where it was
read: it is neither in a job nor in a result, and nothing prints it but who asked for it.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import orjson

from appliance.errors import IntegrityError, Interrupted
from appliance.jobs import pipes

VARIABLE = "APPLIANCE_EXCHANGE"
_LENGTH, _LONGEST = 4, 1 << 26
_PIECE = 1 << 16


@dataclass(slots=True)
class Exchange(pipes.Pipes):
    """The supervisor's ends."""

    def wait(self, seconds: float) -> None:
        """Wait until the worker says something or has ended, or so long."""
        if not select.select([self.reads], [], [], seconds)[0]:
            return
        if not self._take_in():
            time.sleep(min(seconds, 0.02))  # between the end of a worker's pipes and that of its process

    def said(self) -> Iterator[Any]:
        """Give what the worker has said so far, each message once.

        Raises:
          IntegrityError: it is no message.
        """
        while self._take_in():
            pass
        while taken := _take(self.unread):
            yield taken[0]

    def say(self, message: Any) -> None:
        """Tell the worker something; one that has ended is told nothing."""
        try:
            _write(self.writes, message)
        except BrokenPipeError:
            return

    def _take_in(self) -> bool:
        """Take what there is, and tell whether there was any."""
        before = len(self.unread)
        if before <= _LENGTH + _LONGEST:  # else a whole message is here, or what is none: whoever says more has to wait
            self.fill()
        return len(self.unread) > before


def opened() -> AbstractContextManager[Exchange]:
    """Open the pipes for one worker."""
    return pipes.opened(Exchange, VARIABLE)


@dataclass(slots=True)
class Exchanged:
    """The worker's ends."""

    _reads: int
    _writes: int

    @staticmethod
    def inherited() -> Exchanged:
        """Take the ends that the environment names.

        Raises:
          Interrupted: there are none: nobody listens.
        """
        ends = pipes.find_inherited(VARIABLE)
        if ends is None:
            raise Interrupted("nobody talks to this worker")
        return Exchanged(*ends)

    def say(self, message: Any) -> None:
        """Tell the supervisor something.

        Raises:
          Interrupted: it is gone.
        """
        try:
            _write(self._writes, message)
        except BrokenPipeError:
            raise Interrupted("the supervisor is gone") from None

    def hear(self) -> Any:
        """Wait for what the supervisor says next.

        Raises:
          Interrupted: it is gone.
        """
        size = int.from_bytes(self._exactly(_LENGTH), "big")
        return orjson.loads(self._exactly(size))

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            piece = os.read(self._reads, min(_PIECE, size - len(data)))
            if not piece:
                raise Interrupted("the supervisor is gone")
            data += piece
        return bytes(data)


def _write(descriptor: int, message: Any) -> None:
    data = orjson.dumps(message)
    view = memoryview(len(data).to_bytes(_LENGTH, "big") + data)
    while view:
        view = view[os.write(descriptor, view) :]


def _take(read: bytearray) -> tuple[Any] | None:
    """Take the first whole message, which may be null; None where there is none yet."""
    if len(read) < _LENGTH:
        return None
    size = int.from_bytes(read[:_LENGTH], "big")
    if size > _LONGEST:
        raise IntegrityError("the worker says something that is no message")
    if len(read) < _LENGTH + size:
        return None
    data = bytes(read[_LENGTH : _LENGTH + size])
    del read[: _LENGTH + size]
    try:
        return (orjson.loads(data),)
    except orjson.JSONDecodeError:
        raise IntegrityError("the worker says something that is no message") from None
