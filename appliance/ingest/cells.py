"""Typed values of workbooks and columnar files as the same values that JSON or CSV would give."""

from __future__ import annotations

import math
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

from appliance.ingest.source import RowRefused


def plain(value: Any) -> Any:
    """Write a cell as text, number, truth, list or object; dates and times as ISO 8601 has them.

    A number that is not one (NaN) is a missing value. Bytes that are UTF-8 are text; others stay bytes, which no
    record is made of.

    Raises:
      RowRefused: a number is infinite.
    """
    if value is None or type(value) in (str, int, bool):
        return value
    if type(value) is float:
        return _number(value)
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return _other(value)


def _number(value: float) -> float | None:
    if math.isinf(value):
        raise RowRefused("holds an infinite number")
    return None if math.isnan(value) else value


def _other(value: Any) -> Any:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    return str(value)


def size(value: Any) -> int:
    """Tell about how many bytes a plain value takes as text."""
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(len(key) + size(part) for key, part in value.items())
    if isinstance(value, list):
        return sum(map(size, value))
    return 8
