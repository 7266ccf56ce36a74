"""Plain text: one record a file, a line or a paragraph."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from appliance.ingest.source import BadRow, Row, lines, too_long
from appliance.ingest.spec import Split


def read_text(path: Path, split: Split, limit: int) -> Iterator[Row | BadRow]:
    """Read the records of a text file as rows with the one column `text`; blank ones are skipped.

    Args:
      path: a regular file.
      split: what one record is; paragraphs are parted by blank lines.
      limit: longest record in bytes.

    Raises:
      DataInvalid: only if the file as a whole cannot be read.
    """
    block = _Block(str(path), limit)
    for number, offset, line in lines(path, limit):
        blank = line is not None and line.isspace()
        if split == "line" or (blank and split == "paragraph"):
            yield from block.end()
        if not blank or (split == "file" and block.started):
            block.add(number, offset, line)
    yield from block.end()


class _Block:
    """The lines of one record, held up to the limit."""

    def __init__(self, file: str, limit: int) -> None:
        self._file = file
        self._limit = limit
        self._data = bytearray()
        self._too_long = False
        self._place = (0, 0)
        self.started = False

    def add(self, number: int, offset: int, line: bytes | None) -> None:
        if not self.started:
            self.started, self._place = True, (number, offset)
        if line is None or len(self._data) + len(line) > self._limit + 1:
            self._too_long = True
        elif not self._too_long:
            self._data += line

    def end(self) -> Iterator[Row | BadRow]:
        if self.started:
            yield self._row()
        self._data.clear()
        self.started = self._too_long = False

    def _row(self) -> Row | BadRow:
        if self._too_long:
            return BadRow(self._file, *self._place, too_long(self._limit))
        try:
            return Row(*self._place, {"text": self._data.decode().rstrip("\r\n")})
        except UnicodeDecodeError:
            return BadRow(self._file, *self._place, "not UTF-8")
