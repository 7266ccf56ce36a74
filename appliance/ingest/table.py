"""Rows of values under a header: what delimited files and sheets of a workbook have in common."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from appliance.errors import DataInvalid
from appliance.ingest.source import BadRow, Row

MAX_COLUMNS = 4096

Values = tuple[int, int | None, Sequence[Any] | str]
"""Line, offset, and the values of a row, or the reason why there are none."""


def read_table(path: Path, rows: Iterable[Values], required: Sequence[str], hint: str) -> Iterator[Row | BadRow]:
    """Name the values of each row by the first row; a row that says the header again is rejected: files were joined.

    Args:
      path: of the file.
      rows: the header first.
      required: columns that must be there.
      hint: what to do where one of them is not.

    Raises:
      DataInvalid: if the header is not one, or a second one differs. The header is never quoted: a file without a
        header has a record there.
    """
    header: list[str] | None = None
    for line, offset, values in rows:
        if header is None:
            header = _header(values, f"{path}:{line}", required, hint)
        elif isinstance(values, str):
            yield BadRow(str(path), line, offset, values)
        elif len(values) != len(header):
            reason = f"has {len(values)} columns, the header has {len(header)}"
            yield BadRow(str(path), line, offset, reason)
        elif sorted(bare := name_columns(values)) == sorted(header):
            _require_same_order(bare, header, f"{path}:{line}")
            yield BadRow(str(path), line, offset, "repeats the header: files were joined")
        else:
            yield Row(line, offset, dict(zip(header, values, strict=True)))


def name_columns(values: Sequence[Any]) -> list[str]:
    """Name the columns by the values of a header."""
    texts = ["" if value is None else str(value) for value in values]
    return [text.strip("\ufeff \t\r\n\xa0") or f"#{position}" for position, text in enumerate(texts, 1)]


def _require_same_order(names: list[str], header: list[str], where: str) -> None:
    if names != header:
        hint = "ingest the files one by one, without joining them"
        raise DataInvalid("a second header names the columns in another order", hint=hint, where=where)


def _header(values: Sequence[Any] | str, where: str, required: Sequence[str], hint: str) -> list[str]:
    if isinstance(values, str):
        raise DataInvalid(f"the header cannot be read: {values}", where=where)
    if len(values) > MAX_COLUMNS:
        raise DataInvalid(f"more than {MAX_COLUMNS} columns", where=where)
    names = name_columns(values)
    require_columns(names, required, where, f"the first row must name the columns; {hint}")
    return names


def require_columns(names: Sequence[str], required: Sequence[str], where: str, hint: str) -> None:
    """Refuse columns of which two have one name, or one that is required is not there. Raises `DataInvalid`."""
    if len(set(names)) != len(names):
        raise DataInvalid("two columns have the same name", where=where)
    for column in required:
        if column not in names:
            raise DataInvalid(f"there is no column '{column}'", hint=hint, where=where)
