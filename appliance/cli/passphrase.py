"""The passphrase on its way in: from a file or a terminal into a buffer that is wiped. It never becomes a string.

What Python once held as a string stays in memory for as long as the process lives, in copies that nothing reaches. So
no slice of the buffer is taken either, and it is made as large as it may become before anything is read into it.
"""

from __future__ import annotations

import os
import stat
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from appliance.errors import IsolationViolated, UsageError
from appliance.store.wrapping import wipe

VARIABLE = "APPLIANCE_PASSPHRASE_FILE"
_LONGEST, _SHORTEST = 4095, 12  # bytes, as a line of a terminal has at most; characters
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_NEWLINE, _LINE_ENDS = ord("\n"), b"\r\n"


@contextmanager
def passphrase(file: Path | None, *, new: bool = False) -> Iterator[bytearray]:
    """Ask for the passphrase: in `file`, in APPLIANCE_PASSPHRASE_FILE, or on the terminal; it is wiped afterwards.

    Raises:
      UsageError: there is no terminal and no file, the file cannot be read, or a new passphrase is too short.
      IsolationViolated: others may read or change the file.
    """
    if file is None and (named := os.environ.get(VARIABLE)):
        file = Path(named)
    secret = bytearray()
    try:
        if file is not None:
            _read_file(file, secret)
        else:
            _ask(secret, new=new)
        if new and _count_characters(secret) < _SHORTEST:
            raise UsageError("a passphrase has at least 12 characters", hint="six random words are a good one")
        yield secret
    finally:
        wipe(secret)


def _count_characters(secret: bytearray) -> int:
    """Count the characters of UTF-8: the bytes that begin one."""
    return sum(byte & 0xC0 != 0x80 for byte in secret)


# --- a file ---------------------------------------------------------------------------------------------------------


def _read_file(path: Path, secret: bytearray) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        raise UsageError(f"cannot read a passphrase from {path}") from None
    try:
        _require_private(path, os.fstat(descriptor))
        _read(descriptor, secret)
    except OSError:
        raise UsageError(f"cannot read a passphrase from {path}") from None
    finally:
        os.close(descriptor)


def _require_private(path: Path, found: os.stat_result) -> None:
    """Refuse a file that is another user's or that others may open. What is opened is asked, not what has the name."""
    if found.st_mode & _OTHERS or found.st_uid not in (os.geteuid(), 0):
        hint = f"it must be yours, and yours alone: chmod 600 {path}"
        raise IsolationViolated("others may read or change the passphrase file", hint=hint, where=str(path))


# --- a terminal -----------------------------------------------------------------------------------------------------


def _ask(secret: bytearray, *, new: bool) -> None:
    """Ask on the terminal, a new passphrase twice until both are the same."""
    with _terminal() as terminal:
        while True:
            _prompt(terminal, b"passphrase: ", secret)
            if not new or _is_repeated(terminal, secret):
                return
            os.write(terminal, b"these are not the same\n")


def _is_repeated(terminal: int, secret: bytearray) -> bool:
    again = bytearray()
    try:
        _prompt(terminal, b"the same again: ", again)
        return again == secret
    finally:
        wipe(again)


@contextmanager
def _terminal() -> Iterator[int]:
    """Open the terminal of this process, whatever its standard error is."""
    if not os.isatty(0):
        raise UsageError("a passphrase is needed and there is no terminal", hint="give --passphrase-file FILE")
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError:  # no controlling terminal, though standard input is one
        terminal = os.open(os.ttyname(0), os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        yield terminal
    finally:
        os.close(terminal)


def _prompt(terminal: int, question: bytes, secret: bytearray) -> None:
    """Read one line that is not shown. Ctrl-C interrupts; nothing gives up; the terminal is left as it was."""
    before = termios.tcgetattr(terminal)
    silent = [*before[:3], before[3] & ~termios.ECHO | termios.ICANON | termios.ISIG, *before[4:]]
    sys.stderr.flush()
    os.write(terminal, question)
    try:
        termios.tcsetattr(terminal, termios.TCSAFLUSH, silent)  # what was typed before the question is dropped
        _read(terminal, secret, line=True)
    finally:
        termios.tcsetattr(terminal, termios.TCSAFLUSH, before)
        os.write(terminal, b"\n")
    if not secret:
        raise typer.Abort


# --- the buffer -----------------------------------------------------------------------------------------------------


def _read(descriptor: int, secret: bytearray, *, line: bool = False) -> None:
    """Read to the end, or to the end of a line, into the buffer itself. Line ends do not belong to a passphrase."""
    wipe(secret)
    secret[:] = bytes(_LONGEST + 1)
    size = 0
    try:
        while size <= _LONGEST and not (line and size and secret[size - 1] == _NEWLINE):
            with memoryview(secret) as view:
                count = os.readv(descriptor, [view[size:]])
            if not count:
                break
            size += count
        if size > _LONGEST:
            raise UsageError(f"a passphrase has at most {_LONGEST} bytes")
    finally:
        while size and secret[size - 1] in _LINE_ENDS:
            size -= 1
        _cut(secret, size)


def _cut(secret: bytearray, size: int) -> None:
    """Shorten the buffer, wiping what is cut off first."""
    for index in range(size, len(secret)):
        secret[index] = 0
    del secret[size:]
