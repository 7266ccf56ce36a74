"""JSON lines: one object a line. orjson parses, and refuses NaN, half surrogates, control characters and bad UTF-8."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson

from appliance.errors import DataInvalid
from appliance.ingest.source import BadRow, Row, RowRefused, lines, too_long

_ARRAY = re.compile(rb"\s*\[\s*(\{|$)")
_CHEAP = 1 << 24  # bytes that looking for the keys of one line may pass over


def read_jsonl(path: Path, limit: int) -> Iterator[Row | BadRow]:
    """Read the rows of a JSONL file; blank lines are skipped.

    Args:
      path: a regular file.
      limit: longest row in bytes.

    Raises:
      DataInvalid: only if the file as a whole cannot be read; a bad row is an item, not an error.
    """
    for number, offset, line in lines(path, limit):
        if line is not None and number == 1 and _ARRAY.match(line):
            hint = "it is read with --format json"
            raise DataInvalid("this is one JSON array, not one object a line", hint=hint, where=str(path))
        try:
            if line is None:
                raise RowRefused(too_long(limit))
            if not line.isspace():
                yield Row(number, offset, parse_object(line))
        except RowRefused as refused:
            yield BadRow(str(path), number, offset, str(refused))


def parse_object(line: bytes) -> dict[str, Any]:
    """Parse one JSON object. Raises `RowRefused`."""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        # orjson's messages are fixed sentences; the position is one of characters in this line.
        raise RowRefused(f"not valid JSON: {error.msg} (character {error.pos + 1})") from None
    if type(value) is not dict:
        raise RowRefused("not a JSON object")
    if _may_repeat(line, value):
        _refuse_repeated_keys(line)
    return value


def _may_repeat(line: bytes, value: dict[str, Any]) -> bool:
    """Tell whether some key may stand twice in one object; False is certain.

    orjson keeps the last of two equal keys. Every key of the text is quoted, and a quoted key cannot be part of a
    string, whose own quotes are escaped. So if each key is found as often in the bytes as in the value, none was
    dropped. Only a key that needs or may use an escape can hide from the count; then the answer is True, as it is where
    a long line has so many keys that counting them all takes longer than parsing the line again.
    """
    if b"\\u" in line:
        return True
    counts: dict[str, int] = {}
    stack: list[Any] = [value]
    while stack:
        item = stack.pop()
        if type(item) is dict:
            for key in item:
                counts[key] = counts.get(key, 0) + 1
            item = item.values()
        stack.extend([part for part in item if type(part) is dict or type(part) is list])
    if len(counts) * len(line) > _CHEAP:
        return True
    for key, count in counts.items():
        quoted = _quote(key)
        if quoted is None or line.count(quoted) != count:
            return True
    return False


@lru_cache(maxsize=4096)
def _quote(key: str) -> bytes | None:
    plain = key.isprintable() and not any(mark in key for mark in '"\\/')
    return f'"{key}"'.encode() if plain else None


def _refuse_repeated_keys(line: bytes) -> None:
    try:
        json.loads(line, object_pairs_hook=_once, parse_int=float)
    except RecursionError:
        raise RowRefused("not valid JSON: nested too deeply") from None
    except ValueError:
        raise RowRefused("not valid JSON") from None


def _once(pairs: list[tuple[str, Any]]) -> None:
    if len({key for key, _ in pairs}) != len(pairs):
        raise RowRefused("a key stands twice in one object")
