"""Workbooks (.xlsx): one sheet, read row by row by openpyxl, with the values that Excel last saved.

openpyxl is an extra and is loaded only here. What a workbook unpacks to is bounded before any of it is unpacked: a
zip member gives no more bytes than the archive says.
"""

from __future__ import annotations

import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from appliance.errors import DataInvalid, UsageError, WillNotFit
from appliance.ingest.cells import plain, size
from appliance.ingest.source import BadRow, Bounds, Row, RowRefused, open_stored, too_long
from appliance.ingest.table import Values, read_table

_ROWS = 1 << 20  # that a sheet can have
_MEMBERS = 10_000
_UNPACKED_FREE = 64 << 20  # bytes that any workbook may unpack to
_RATIO = 100  # bytes for each further byte of the file; sheets of one phrase pack forty to one
# How a cell's text has what XML does not hold, and ends of lines (ECMA-376, 22.9.2.19); half a pair is no character.
_ESCAPED = re.compile("_x((?![Dd][89A-Fa-f])[0-9A-Fa-f]{4})_")
_DAMAGED = (
    ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, OSError, RuntimeError, SyntaxError,
    TypeError, ValueError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def read_sheet(path: Path, sheet: str, limit: int, required: tuple[str, ...]) -> Iterator[Row | BadRow]:
    """Read the rows of a sheet, whose first row with a value names the columns; blank rows are skipped.

    Formulas give the value that was saved with them; without one, and for errors such as `#N/A`, the cell is empty.

    Args:
      path: a regular file.
      sheet: its name; empty is the first one that is not hidden.
      limit: longest row in bytes.
      required: columns that must be there.

    Raises:
      DataInvalid: if the file is no workbook, or its header is not one.
      UsageError: it has no sheet of that name.
      WillNotFit: it would unpack to far more than workbooks do, or takes longer than a file of this size may take.
    """
    with _opened(path) as book:
        rows = _rows(path, _choose(path, book, sheet), limit)
        yield from read_table(path, rows, required, "choose another sheet with --sheet")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    import openpyxl

    with open_stored(path) as stream:
        _check_extent(path, stream)
        try:
            with warnings.catch_warnings(action="ignore"):
                book = openpyxl.load_workbook(stream, read_only=True, data_only=True, keep_links=False)
        except _DAMAGED:
            raise _damaged(path) from None
        try:
            yield book
        finally:
            book.close()


def _check_extent(path: Path, stream: Any) -> None:
    """Refuse what is no archive, or would unpack to far more than workbooks do, before it is unpacked."""
    try:
        members = zipfile.ZipFile(stream).infolist()
    except _DAMAGED:
        raise _damaged(path) from None
    most = _UNPACKED_FREE + _RATIO * path.stat().st_size
    if len(members) > _MEMBERS or sum(member.file_size for member in members) > most:
        hint = "save it anew with its rows alone, or as CSV UTF-8"
        raise WillNotFit("the workbook would unpack to far more than its size can mean", hint=hint, where=str(path))


def name_sheet(path: Path, sheet: str) -> str:
    """Say which sheet is read, and of how many. Raises as `read_sheet`."""
    with _opened(path) as book:
        others = len(book.worksheets) - 1
        beside = f"; {others} other{'s are' if others > 1 else ' is'} left out" if others else ""
        return f"sheet '{_choose(path, book, sheet).title}'{beside}"


def _choose(path: Path, book: Any, name: str) -> Any:
    sheets = {sheet.title: sheet for sheet in book.worksheets}
    if not sheets:
        raise _damaged(path)
    if name and name not in sheets:
        raise UsageError("the workbook has no sheet of that name", hint="sheets are named as on their tabs")
    seen = [sheet for sheet in sheets.values() if sheet.sheet_state == "visible"]
    chosen = sheets[name] if name else [*seen, *sheets.values()][0]
    chosen.reset_dimensions()  # what the file says of its extent may be wrong
    return chosen


def _rows(path: Path, sheet: Any, limit: int) -> Iterator[Values]:
    """Read the rows that have a value, as long as the first of them, or longer."""
    bounds = Bounds(path, path.stat().st_size)
    width, cells = 0, iter(sheet.iter_rows())
    for number in range(1, _ROWS + 2):
        bounds.check()
        try:
            with warnings.catch_warnings(action="ignore"):
                row = next(cells, None)
            values = None if row is None else _values(row)
        except RowRefused as refused:
            yield number, None, str(refused)
            continue
        except _DAMAGED:
            raise _damaged(path) from None
        if values is None:
            return
        if values:
            width = width or len(values)
            yield number, None, too_long(limit) if size(values) > limit else values + [None] * (width - len(values))
    raise DataInvalid(f"more than {_ROWS} rows", where=str(path))


def _values(row: tuple[Any, ...]) -> list[Any]:
    values = [_value(cell) for cell in row]
    while values and values[-1] in (None, ""):
        values.pop()
    return values


def _value(cell: Any) -> Any:
    if cell.value is None or cell.data_type == "e":
        return None
    if type(cell.value) is datetime and not any(mark in cell.number_format.lower() for mark in "hs"):
        return cell.value.date().isoformat()  # a day without a time
    if type(cell.value) is str:
        return _ESCAPED.sub(lambda code: chr(int(code[1], 16)), cell.value)
    return plain(cell.value)


def _damaged(path: Path) -> DataInvalid:
    message = "the file is damaged, or no Excel workbook (.xlsx) that can be read"
    return DataInvalid(message, hint="open it in Excel and save it anew as .xlsx, or as CSV UTF-8", where=str(path))
