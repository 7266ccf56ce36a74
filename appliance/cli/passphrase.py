"""The passphrase on its way in: from a file or a terminal into a buffer that is wiped. It never becomes a string.

What Python once held as a string stays in memory for as long as the process lives, in copies that nothing reaches.
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

VARIABLE = "APPLIANCE_PASSPHRASE_FILE"
_LONGEST, _SHORTEST = 4096, 12  # bytes, as a line of a terminal has at most; characters
_OTHERS, _OTHERS_WRITE, _GROUP_WRITES = 0o077, stat.S_IWOTH, stat.S_IWGRP
_LINE_ENDS = b"\r\n"


@contextmanager
def passphrase(file: Path | None, *, new: bool = False) -> Iterator[bytearray]:
    """Ask for the passphrase: in `file`, in APPLIANCE_PASSPHRASE_FILE, or on the terminal; it is wiped afterwards.

    Raises:
      UsageError: there is no terminal and no file, the file cannot be read, or a new passphrase is too short.
      IsolationViolated: others can read the file or put another in its place.
    """
    if file is None and (named := os.environ.get(VARIABLE)):
        file = Path(named)
    secret = bytearray()
    try:
        if file is not None:
            _read_file(file, secret)
        else:
            _ask(secret, new=new)
        if new and _characters(secret) < _SHORTEST:
            raise UsageError("a passphrase has at least 12 characters", hint="six random words are a good one")
        yield secret
    finally:
        wipe(secret)


def wipe(secret: bytearray) -> None:
    """Overwrite a buffer with zeros, in place."""
    for index in range(len(secret)):
        secret[index] = 0


def _characters(secret: bytearray) -> int:
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
        _fill(descriptor, secret)
    except OSError:
        raise UsageError(f"cannot read a passphrase from {path}") from None
    finally:
        os.close(descriptor)


def _require_private(path: Path, found: os.stat_result) -> None:
    """Refuse a file that others can read, or whose name others can give to another file; a pipe has no name."""
    if stat.S_IMODE(found.st_mode) & _OTHERS or found.st_uid not in (os.geteuid(), 0):
        raise IsolationViolated("others can read the passphrase", hint=f"chown and chmod 600 {path}", where=str(path))
    if not stat.S_ISREG(found.st_mode):
        return
    for directory in {*path.absolute().parents, *path.resolve().parents}:
        if _others_write(directory.stat()):
            hint = f"chmod go-w {directory}, or keep the file elsewhere"
            raise IsolationViolated("others can replace the passphrase file", hint=hint, where=str(directory))


def _others_write(found: os.stat_result) -> bool:
    """Tell whether somebody else may rename what is in a directory. A group of this user alone is he himself."""
    if found.st_uid not in (os.geteuid(), 0):
        return True
    if found.st_mode & stat.S_ISVTX:  # everybody's directory, where each owner keeps his own names
        return False
    own_group = found.st_gid == os.getegid() == os.geteuid()
    return bool(found.st_mode & (_OTHERS_WRITE if own_group else _OTHERS_WRITE | _GROUP_WRITES))


def _fill(descriptor: int, secret: bytearray) -> None:
    """Read to the end, into the buffer itself; line ends at the end do not belong to a passphrase."""
    _read(descriptor, secret, until=b"")
    _cut(secret, len(secret.rstrip(_LINE_ENDS)))


# --- a terminal -----------------------------------------------------------------------------------------------------


def _ask(secret: bytearray, *, new: bool) -> None:
    """Ask on the terminal, a new passphrase twice until both are the same."""
    with _terminal() as terminal:
        while True:
            _prompt(terminal, b"passphrase: ", secret)
            if not new:
                return
            again = bytearray()
            try:
                _prompt(terminal, b"the same again: ", again)
                if again == secret:
                    return
            finally:
                wipe(again)
            os.write(terminal, b"these are not the same\n")
            _cut(secret, 0)


@contextmanager
def _terminal() -> Iterator[int]:
    """Open the terminal of this process; whatever standard error is."""
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
    """Read one line that is not shown. Ctrl-C interrupts, Ctrl-D gives up, and the terminal shows what is typed again."""
    before = termios.tcgetattr(terminal)
    silent = [*before[:3], before[3] & ~termios.ECHO | termios.ICANON | termios.ISIG, *before[4:]]
    sys.stderr.flush()
    os.write(terminal, question)
    try:
        termios.tcsetattr(terminal, termios.TCSAFLUSH, silent)  # what was typed before the question is dropped
        _read(terminal, secret, until=b"\n")
    finally:
        termios.tcsetattr(terminal, termios.TCSAFLUSH, before)
        os.write(terminal, b"\n")
    if not secret:
        raise typer.Abort
    _cut(secret, len(secret.rstrip(_LINE_ENDS)))


# --- the buffer -----------------------------------------------------------------------------------------------------


def _read(descriptor: int, secret: bytearray, *, until: bytes) -> None:
    """Read into the buffer, which is first made as large as it may become: it never moves and leaves no copy behind."""
    secret[:] = bytes(_LONGEST + 1)
    size = 0
    try:
        while size <= _LONGEST and not (until and secret[:size].endswith(until)):
            with memoryview(secret) as view:
                read = os.readv(descriptor, [view[size:]])
            if not read:
                break
            size += read
    finally:
        _cut(secret, size)
    if size > _LONGEST:
        raise UsageError(f"a passphrase has at most {_LONGEST} bytes")


def _cut(secret: bytearray, size: int) -> None:
    """Shorten the buffer, wiping what is cut off first."""
    for index in range(size, len(secret)):
        secret[index] = 0
    del secret[size:]
