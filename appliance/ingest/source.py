"""Opening a foreign file and cutting it into lines, in bounded memory, with the exact place of each line."""

from __future__ import annotations

import errno
import gzip
import io
import os
import stat
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from appliance.errors import ArtefactMissing, DataInvalid, WillNotFit

_BLOCK = 1 << 20
_LINES_FREE = 1 << 20  # lines that a compressed file may have beyond one for each of its bytes
_SECONDS_FREE = 900.0  # that any file may take
_SLOWEST = (
    20_000  # bytes of the file, as it lies on disk, in each further second; a slow disk reads a thousand times that
)
_UTF8_BOM = b"\xef\xbb\xbf"
# The first bytes of files that are certainly not lines of UTF-8, and what to do about them.
_FOREIGN = {
    b"\xff\xfe": ("UTF-16 text", "convert it to UTF-8"),
    b"\xfe\xff": ("UTF-16 text", "convert it to UTF-8"),
    b"PK\x03\x04": ("a zip archive", "unpack it first; an Excel workbook is read with --format xlsx"),
    b"\xd0\xcf\x11\xe0": (
        "a file of Microsoft Office",
        "an Excel workbook that is old (.xls) or locked is saved as .xlsx",
    ),
    b"%PDF": ("a PDF file", "extract its text first"),
    b"ORC": ("an ORC file", "convert it to JSONL"),
    b"\x28\xb5\x2f\xfd": ("a zstd file", "unpack it first"),
    b"PAR1": ("a Parquet file", "it is read with --format parquet"),
    b"BZh": ("a bzip2 file", "unpack it first"),
    b"\xfd7zXZ": ("an xz file", "unpack it first"),
    b"7z\xbc\xaf": ("a 7z archive", "unpack it first"),
    b"Rar!": ("a rar archive", "unpack it first"),
    b"{\\rtf": ("a rich text document", "save it as plain text"),
    b"ARROW1": ("an Arrow file", "convert it to Parquet or JSONL"),
    b"Obj\x01": ("an Avro file", "convert it to JSONL"),
    b"SQLite": ("an SQLite database", "export its table to CSV"),
}


class Row(NamedTuple):
    """One row as it stands in a file.

    Attributes:
      line: from 1; in a workbook or a Parquet file, the number of the row.
      offset: in bytes, decompressed; None where a row is not a stretch of the file.
      fields: its columns.
      passages: texts of the source that it is known by, besides what it holds.
    """

    line: int
    offset: int | None
    fields: dict[str, Any]
    passages: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that was rejected: where it starts and why, never what it holds.

    Attributes:
      file: the file as it was named.
      line: from 1; in a workbook or a Parquet file, the number of the row.
      offset: bytes from the start of the file (of the decompressed content for gzip); None as in `Row`.
      reason: lower case, public words only.
    """

    file: str
    line: int
    offset: int | None
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}{self._byte}: {self.reason}"

    @property
    def place(self) -> str:
        """Where it starts in its file, in words."""
        return f"{'row' if self.offset is None else 'line'} {self.line}{self._byte}"

    @property
    def _byte(self) -> str:
        return "" if self.offset is None else f" (byte {self.offset})"


class RowRefused(Exception):
    """Inside this room: the row at hand is refused. Its text is a reason that never quotes the row."""


@contextmanager
def open_source(path: Path) -> Iterator[io.BufferedReader[Any]]:
    """Open a regular file for reading, decompressing gzip.

    Raises:
      ArtefactMissing: if there is no such file.
      DataInvalid: for a symbolic link, directory, FIFO or device, or a file that may not be read.
    """
    with open_stored(path) as raw:
        if raw.peek(2)[:2] == b"\x1f\x8b":
            unpacked: Any = gzip.GzipFile(fileobj=raw)
            with io.BufferedReader(unpacked, _BLOCK) as buffered:
                yield buffered
        else:
            yield raw


@contextmanager
def open_stored(path: Path) -> Iterator[io.BufferedReader[Any]]:
    """Open a regular file for reading as it is stored. Raises as `open_source`."""
    # Non-blocking, so that a FIFO without a writer cannot hold the ingest up; no effect on regular files.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        raise _not_opened(path, error) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DataInvalid("not a regular file", hint="name the files themselves", where=str(path))
    with io.FileIO(descriptor) as file, io.BufferedReader(file, _BLOCK) as raw:
        yield raw


def _not_opened(path: Path, error: OSError) -> ArtefactMissing | DataInvalid:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return ArtefactMissing("there is no such file", where=str(path))
    if error.errno == errno.ELOOP:
        return DataInvalid("a symbolic link is not followed", hint="name the file it points to", where=str(path))
    return DataInvalid(f"the file cannot be opened: {os.strerror(error.errno or 0).lower()}", where=str(path))


def check_source(path: Path) -> None:
    """Raise what `open_source` would raise, so that a missing file is told before any other is read."""
    with open_source(path):
        pass


def lines(path: Path, limit: int) -> Iterator[tuple[int, int, bytes | None]]:
    """Read the lines of a file: number from 1, byte offset, and the bytes with their line feed.

    A line longer than `limit` bytes comes as None; it is skipped without being held. Byte order marks are skipped.

    Raises:
      DataInvalid: if the file is of a foreign kind, cannot be read or decompressed to its end, or unpacks to more lines
        than data do: to nothing but line feeds, for example.
      WillNotFit: reading it and what is done with it took longer than a file of this size may take.
    """
    number = offset = 0
    with open_source(path) as stream:
        bounds = Bounds(path, os.fstat(stream.fileno()).st_size)
        try:
            offset = _skip_mark(stream, path)
            while data := stream.readline(limit + 1):
                number += 1
                bounds.check(number)
                size = len(data)
                if size > limit and data[-1] != 10:
                    size += _skip_line(stream, bounds)
                    yield number, offset, None
                else:
                    yield number, offset, data
                offset += size
        except (OSError, EOFError, zlib.error):
            raise _damaged(f"{path}:{number + 1}", offset) from None


def blocks(path: Path, rows: Callable[[], int]) -> Iterator[tuple[int, bytes]]:
    """Read a file in pieces of any size: byte offset, and the bytes. Byte order marks are skipped.

    Args:
      path: a regular file.
      rows: tells how many rows were found so far.

    Raises:
      DataInvalid: if the file is of a foreign kind, cannot be read or decompressed to its end, or has more rows than
        data of its size do.
      WillNotFit: as `lines`.
    """
    offset = 0
    with open_source(path) as stream:
        bounds = Bounds(path, os.fstat(stream.fileno()).st_size)
        try:
            offset = _skip_mark(stream, path)
            while data := stream.read1(_BLOCK):
                bounds.check(rows(), "rows")
                yield offset, data
                offset += len(data)
        except (OSError, EOFError, zlib.error):
            raise _damaged(str(path), offset) from None


def _damaged(where: str, offset: int) -> DataInvalid:
    message = f"the file is damaged: it cannot be read or decompressed beyond byte {offset}"
    return DataInvalid(message, hint="copy it again from its source", where=where)


def _skip_mark(stream: io.BufferedReader[Any], path: Path) -> int:
    head = stream.peek(8)[:8]
    for magic, (kind, hint) in _FOREIGN.items():
        if head.startswith(magic):
            raise DataInvalid(f"this is {kind}", hint=hint, where=str(path))
    skipped = 0
    while stream.peek(3)[:3] == _UTF8_BOM:  # two where a program put its own before what had one
        skipped += len(stream.read(3))
    return skipped


class Bounds:
    """Ends the reading of a file that costs far more time than data of its size do, or has far more rows."""

    def __init__(self, path: Path, stored: int) -> None:
        self._path = path
        self._most = _LINES_FREE + stored
        self._seconds = _SECONDS_FREE + stored / _SLOWEST
        self._end = time.monotonic() + self._seconds

    def check(self, rows: int = 0, what: str = "lines") -> None:
        """Raise `WillNotFit` where time is up, `DataInvalid` where there are too many rows."""
        if time.monotonic() > self._end:
            message = f"reading took longer than the {self._seconds:.0f} s that a file of this size may take"
            raise WillNotFit(message, hint="split the file, or unpack it first", where=str(self._path))
        if rows > self._most:
            raise DataInvalid(f"more {what} than a file of this size can mean", where=f"{self._path}:{rows}")


def _skip_line(stream: io.BufferedReader[Any], bounds: Bounds) -> int:
    skipped = 0
    while data := stream.readline(_BLOCK):
        bounds.check()
        skipped += len(data)
        if data[-1] == 10:
            break
    return skipped


def too_long(limit: int) -> str:
    """Say why a row of more than `limit` bytes is refused."""
    return f"longer than {limit} bytes"
