"""CSV and TSV: the standard library's strict parser, fed line by line so that every row keeps its place.

A row that cannot be parsed loses its first line only: reading goes on with the next line, so a stray quote does not
swallow what follows it.
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from appliance.ingest.dialect import Dialect
from appliance.ingest.source import BadRow, Row, RowRefused, lines, too_long
from appliance.ingest.table import read_table

MAX_LINES = 10_000  # of one row; with the limit in bytes it bounds what an unclosed quote can take

_Line = tuple[int, int, bytes | None]


class _Feed:
    """Hands lines to the parser, remembers those of the row at hand, and can take all but the first back."""

    def __init__(self, source: Iterator[_Line], limit: int, dialect: Dialect) -> None:
        self._source = source
        self._dialect = dialect
        self._limit = limit
        self._again: deque[_Line] = deque()
        self._row: list[_Line] = []
        self._bytes = 0

    def __iter__(self) -> _Feed:
        return self

    def begin(self) -> None:
        self._row.clear()
        self._bytes = 0

    @property
    def place(self) -> tuple[int, int]:
        return self._row[0][:2]

    def take_back(self) -> None:
        self._again.extendleft(reversed(self._row[1:]))

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._source)
        self._row.append(line)
        data = line[2]
        if data is None:
            raise RowRefused(too_long(self._limit))
        self._bytes += len(data)
        if self._bytes > self._limit + 1 or len(self._row) > MAX_LINES:
            raise RowRefused("a quoted field is not closed")
        if b"\0" in data:
            raise RowRefused("holds a NUL character")
        return self._dialect.decode(data)


def read_delimited(path: Path, dialect: Dialect, limit: int, required: tuple[str, ...]) -> Iterator[Row | BadRow]:
    """Read the rows of a CSV or TSV file, whose first row names the columns; blank lines are skipped.

    A column without a name is called `#1`, `#2`... by its position. Blanks around a name do not belong to it. A row
    that says the header again is rejected: files were joined.

    Args:
      path: a regular file.
      dialect: how it is written (`ingest.dialect`).
      limit: longest row in bytes, over all its lines.
      required: columns that must be there.

    Raises:
      DataInvalid: if the file cannot be read, or its header is not one. The header is never quoted: a file without
        a header has a record there.
    """
    csv.field_size_limit(max(csv.field_size_limit(), limit + 1))
    source = lines(path, limit)
    if dialect.announced:
        next(source)
    rows = _parse(_Feed(source, limit, dialect), dialect.delimiter)
    yield from read_table(path, rows, required, "say with --delimiter what stands between them")


def _parse(feed: _Feed, delimiter: str) -> Iterator[tuple[int, int, list[str] | str]]:
    """Parse line, offset, and the values of each row, or the reason why there are none."""
    parser = csv.reader(feed, delimiter=delimiter, strict=True)
    while True:
        feed.begin()
        try:
            values = next(parser)
        except StopIteration:
            return
        except (csv.Error, RowRefused) as refused:
            yield *feed.place, _reason(refused)
            feed.take_back()
            continue
        if values:
            yield *feed.place, values


def _reason(refused: Exception) -> str:
    text = str(refused)
    if isinstance(refused, RowRefused):
        return text
    if text == "unexpected end of data":
        return "a quoted field is not closed"
    return (
        "a quote is not closed, or text follows a closing one"
        if "expected after" in text
        else "has a line break outside of quotes"
    )
