"""One JSON array of objects, cut into its elements in bounded memory; each is then parsed like a line of JSONL.

Only brackets outside of strings decide where an element ends, so one that is not valid costs itself alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from appliance.errors import DataInvalid
from appliance.ingest.jsonl import parse_object, read_jsonl
from appliance.ingest.source import BadRow, Row, RowRefused, blocks, too_long

_BLANKS = re.compile(rb"[ \t\r\n]*")
_MARK = re.compile(rb'["\[\]{},]')
_REST_OF_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+"', re.DOTALL)

_Element = tuple[int, int, bytes | None]


def read_json(path: Path, limit: int) -> Iterator[Row | BadRow]:
    """Read the rows of a JSON file: an array of objects, or one object a line.

    Args:
      path: a regular file.
      limit: longest row in bytes.

    Raises:
      DataInvalid: if the file as a whole cannot be read; a bad row is an item, not an error.
    """
    if _begins_with_object(path):
        yield from read_jsonl(path, limit)
        return
    for line, offset, element in _cut(path, limit):
        try:
            if element is None:
                raise RowRefused(too_long(limit))
            yield Row(line, offset, parse_object(element))
        except RowRefused as refused:
            yield BadRow(str(path), line, offset, str(refused))


def _begins_with_object(path: Path) -> bool:
    for _, data in blocks(path, lambda: 0):
        if start := data.lstrip():
            return start[:1] == b"{"
    return False


def _cut(path: Path, limit: int) -> Iterator[_Element]:
    """Cut an array into its elements: line, byte offset, and the bytes, or None where they are more than `limit`."""
    cutter = _Cutter(path, limit)
    for offset, data in blocks(path, lambda: cutter.found):
        yield from cutter.feed(offset, data)
    cutter.close()


class _Cutter:
    """Where in the array reading is, and what it holds of the element at hand."""

    def __init__(self, path: Path, limit: int) -> None:
        self.found = 0
        self._path = path
        self._limit = limit
        self._depth = 0
        self._opened = self._in_string = self._escaped = False
        self._line = 1
        self._begin_element()

    def _begin_element(self) -> None:
        self._held = bytearray()
        self._place: tuple[int, int] | None = None
        self._too_long = False

    def feed(self, offset: int, data: bytes) -> Iterator[_Element]:
        """Take the next bytes; yield the elements that end in them."""
        begin = at = 0
        while (at := self._skip_string(data, at)) < len(data):
            mark = _MARK.search(data, at)
            if mark is None:
                break
            at = mark.end()
            if mark[0] == b'"':
                self._in_string = True
            if self._depth == 0:
                self._open(data, begin, mark)
                begin = at
            elif self._ends(mark[0]):
                self._take(offset, data, begin, at - 1)
                yield from self._element(offset + at - 1, last=mark[0] != b",")
                begin = at
        if self._depth == 0:
            self._require_blank(data, begin, len(data))
        else:
            self._take(offset, data, begin, len(data))

    def close(self) -> None:
        """Raise `DataInvalid` if the array is not complete."""
        if self._depth or self._in_string:
            raise self._refused("the array is not closed: the file was cut off, or a quote is not closed")

    def _skip_string(self, data: bytes, at: int) -> int:
        """Go on to behind the string at hand, if there is one."""
        if not self._in_string:
            return at
        start = at + self._escaped
        if end := _REST_OF_STRING.match(data, start):
            self._in_string = self._escaped = False
            return end.end()
        tail = data[start:]
        self._escaped = (len(tail) - len(tail.rstrip(b"\\"))) % 2 == 1
        return len(data)

    def _open(self, data: bytes, begin: int, mark: re.Match[bytes]) -> None:
        self._require_blank(data, begin, mark.start())
        if self._opened or mark[0] != b"[":
            raise self._outside()
        self._depth, self._opened = 1, True

    def _ends(self, mark: bytes) -> bool:
        """Follow a mark inside of the array, and tell whether an element ends there."""
        if mark in b"[{":
            self._depth += 1
        elif mark in b"]}":
            self._depth -= 1
            if self._depth == 0 and mark == b"}":
                raise self._refused("a brace is closed that was not opened")
        return self._depth == 0 or (self._depth == 1 and mark == b",")

    def _require_blank(self, data: bytes, begin: int, end: int) -> None:
        if data[begin:end].strip():
            raise self._outside()
        self._line += data.count(b"\n", begin, end)

    def _take(self, offset: int, data: bytes, begin: int, end: int) -> None:
        if self._place is None:
            blanks = _BLANKS.match(data, begin, end)
            first = blanks.end() if blanks else begin
            self._line += data.count(b"\n", begin, first)
            if first == end:
                return
            self._place, begin = (self._line, offset + first), first
        self._line += data.count(b"\n", begin, end)
        self._too_long = self._too_long or len(self._held) + end - begin > self._limit
        if self._too_long:
            self._held.clear()
        else:
            self._held += data[begin:end]

    def _element(self, offset: int, *, last: bool) -> Iterator[_Element]:
        if self._place is None and last and not self.found:
            return  # an empty array
        self.found += 1
        yield *(self._place or (self._line, offset)), None if self._too_long else bytes(self._held)
        self._begin_element()

    def _outside(self) -> DataInvalid:
        message = "something follows the array: files were joined" if self._opened else "this is not a JSON array"
        return self._refused(message)

    def _refused(self, message: str) -> DataInvalid:
        hint = "the file is one array of objects, [{...}, {...}]; one object a line is read with --format jsonl"
        return DataInvalid(message, hint=hint, where=f"{self._path}:{self._line}")
