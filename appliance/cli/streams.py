"""Standard streams and signals of the process: closed, full or cut ones, and being told to end."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from appliance.errors import WillNotFit

_STANDARD = (0, 1, 2)


def occupy() -> None:
    """Put /dev/null where a standard stream is closed: no file that is opened later may be taken for it."""
    for descriptor in _STANDARD:
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - lasts as long as the process
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115


def heed_signals() -> None:
    """Let SIGTERM and SIGHUP end a command as Ctrl-C does: safe to resume. What was ignored stays ignored (nohup)."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler):
        raise KeyboardInterrupt
    handler(signal.SIGINT, frame)


def finish(status: int) -> int:
    """Write out what is still held back; returns the exit status. Who stopped reading has read what he wanted."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            _drop(stream.fileno())
        except OSError:
            _drop(stream.fileno())
            status = status or WillNotFit.exit_status
    return status


def _drop(descriptor: int) -> None:
    """Lead a stream nowhere, so that the interpreter does not fail at it again on its way out."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)
