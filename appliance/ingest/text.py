"""Plain text: one record a file, a paragraph, a line, or so many tokens; files are never joined."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from appliance.ingest.source import BadRow, Row, lines, too_long

SPLIT = re.compile(r"file|paragraph|line|[1-9][0-9]{0,6}-tokens")
"""What one record may be."""

_TOKEN = re.compile(r"\w+|[^\w\s]")
_HELD = 1 << 16  # bytes of a paragraph that its lines are known by

_Line = tuple[int, int, bytes | None]


def read_text(path: Path, split: str, limit: int) -> Iterator[Row | BadRow]:
    """Read the records of a text file as rows with the one column `text`; blank ones are skipped.

    Args:
      path: a regular file.
      split: what one record is (`SPLIT`). Paragraphs are parted by blank lines. A token is a word, or any other
        character but a blank; whole paragraphs are taken together as long as they fit, and only a longer one is cut.
      limit: longest record in bytes.

    Raises:
      DataInvalid: only if the file as a whole cannot be read.
    """
    if split == "line":
        return _read_lines(path, limit)
    if split.endswith("-tokens"):
        return _read_tokens(path, int(split.removesuffix("-tokens")), limit)
    return _read_blocks(path, limit, whole=split == "file")


def _read_blocks(path: Path, limit: int, *, whole: bool) -> Iterator[Row | BadRow]:
    block = _Block(str(path), limit)
    for line in lines(path, limit):
        blank = line[2] is not None and line[2].isspace()
        if blank and not whole:
            yield from block.end()
        elif not blank or block.started:
            block.add(*line)
    yield from block.end()


def _read_lines(path: Path, limit: int) -> Iterator[Row | BadRow]:
    """Read every line; the first one of a paragraph carries all of it along, unless it is very long."""
    for paragraph in _read_paragraphs(path, limit):
        held = b"".join(data or b"" for _, _, data in paragraph).decode(errors="replace")
        for number, offset, data in paragraph:
            block = _Block(str(path), limit)
            block.add(number, offset, data)
            for row in block.end():
                yield row if isinstance(row, BadRow) else row._replace(passages=(held,) if held else ())
            held = ""


def _read_paragraphs(path: Path, limit: int) -> Iterator[list[_Line]]:
    held: list[_Line] = []
    size = 0
    for line in lines(path, limit):
        data = line[2]
        blank = data is not None and data.isspace()
        if held and (blank or size > _HELD):
            yield held
            held, size = [], 0
        if not blank:
            held.append(line)
            size += len(data or b"")
    if held:
        yield held


def _read_tokens(path: Path, most: int, limit: int) -> Iterator[Row | BadRow]:
    """Take whole paragraphs together up to `most` tokens; cut those that are longer."""
    taken: list[Row] = []
    room = most
    for row in _read_blocks(path, limit, whole=False):
        if isinstance(row, BadRow):
            yield row
            continue
        text = row.fields["text"]
        tokens = sum(1 for _ in _TOKEN.finditer(text))
        if taken and tokens > room:
            yield _join(taken)
            taken, room = [], most
        pieces = [text] if tokens <= most else list(_cut(text, most))
        rows = [Row(row.line, row.offset, {"text": piece}, (text,) if n == 0 else ()) for n, piece in enumerate(pieces)]
        yield from rows[:-1]
        taken.append(rows[-1])
        room -= tokens if len(rows) == 1 else sum(1 for _ in _TOKEN.finditer(pieces[-1]))
    if taken:
        yield _join(taken)


def _cut(text: str, most: int) -> Iterator[str]:
    starts = [match.start() for n, match in enumerate(_TOKEN.finditer(text)) if n % most == 0]
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        yield text[start:end].rstrip()


def _join(rows: Iterable[Row]) -> Row:
    rows = list(rows)
    text = "\n\n".join(row.fields["text"] for row in rows)
    return rows[0]._replace(fields={"text": text}, passages=tuple(p for row in rows for p in row.passages))


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
            text = self._data.decode().rstrip("\r\n")
        except UnicodeDecodeError:
            return BadRow(self._file, *self._place, "not UTF-8")
        return Row(*self._place, {"text": text})
