"""Parquet, read by pyarrow in small batches, with the same values as JSON lines would give.

pyarrow is an extra and is loaded only here, with one thread and without memory of its own beside the process's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from appliance.errors import DataInvalid
from appliance.ingest.cells import plain, size
from appliance.ingest.source import BadRow, Bounds, Row, RowRefused, open_stored, too_long
from appliance.ingest.table import MAX_COLUMNS, require_columns

_MAGIC = b"PAR1"
_BATCH = 64  # rows
_THRIFT = 64 << 20  # bytes, and entries, that the description of a file may take
_DAMAGED = (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)


def read_parquet(path: Path, limit: int, required: Sequence[str]) -> Iterator[Row | BadRow]:
    """Read the rows of a Parquet file; each is known by its number.

    Args:
      path: a regular file.
      limit: longest row in bytes.
      required: columns that must be there.

    Raises:
      DataInvalid: if the file as a whole cannot be read.
      WillNotFit: it takes longer than a file of this size may take.
    """
    import pyarrow

    pyarrow.set_memory_pool(pyarrow.system_memory_pool())
    with _opened(path) as file:
        bounds = Bounds(path, path.stat().st_size)
        bounds.check(file.metadata.num_rows, "rows")
        schema = file.schema_arrow
        if len(schema) > MAX_COLUMNS:
            raise DataInvalid(f"more than {MAX_COLUMNS} columns", where=str(path))
        require_columns(schema.names, required, str(path), "the schema of the file names its columns")
        read = 0
        for rows in _batches(file, _told_schema(path, schema), path):
            bounds.check(read, "rows")
            for row in rows:
                read += 1
                yield _row(path, read, row, limit)


def _row(path: Path, number: int, fields: dict[str, Any] | str, limit: int) -> Row | BadRow:
    try:
        if isinstance(fields, str):
            raise RowRefused(fields)
        values = {column: plain(value) for column, value in fields.items()}
        if size(values) > limit:
            raise RowRefused(too_long(limit))
        return Row(number, None, values)
    except RowRefused as refused:
        return BadRow(str(path), number, None, str(refused))


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from pyarrow import parquet

    with open_stored(path) as stream:
        if stream.peek(4)[:4] != _MAGIC:
            hint = "it is read as it is written, neither packed nor encrypted"
            raise DataInvalid("this is not a Parquet file", hint=hint, where=str(path))
        try:
            file = parquet.ParquetFile(
                stream,
                pre_buffer=False,
                page_checksum_verification=True,
                thrift_string_size_limit=_THRIFT,
                thrift_container_size_limit=_THRIFT,
            )
        except _DAMAGED:
            raise _damaged(path) from None
        with file:
            yield file


def _batches(file: Any, told: Any, path: Path) -> Iterator[list[dict[str, Any] | str]]:
    """Read rows in batches. What pyarrow says of a fault may quote the file, and is not passed on."""
    batches = file.iter_batches(batch_size=_BATCH, use_threads=False)
    while True:
        try:
            batch = next(batches, None)
        except _DAMAGED:
            raise _damaged(path) from None
        if batch is None:
            return
        yield _values(batch, told)


def _values(batch: Any, told: Any) -> list[dict[str, Any] | str]:
    """Take the rows of a batch, or why one has no values; a bad one costs itself alone."""
    try:
        values: list[dict[str, Any] | str] = batch.cast(told, safe=False).to_pylist(maps_as_pydicts="strict")
        return values
    except _DAMAGED:
        if batch.num_rows == 1:
            return ["holds a value that cannot be read: text that is not UTF-8, a key twice, or a date out of range"]
        return [row for n in range(batch.num_rows) for row in _values(batch.slice(n, 1), told)]


def _told_schema(path: Path, schema: Any) -> Any:
    """Choose types that Python can tell: times to the microsecond instead of the nanosecond."""
    import pyarrow

    try:
        return pyarrow.schema([field.with_type(_told(field.type)) for field in schema])
    except _DAMAGED:
        raise _damaged(path) from None


def _told(kind: Any) -> Any:
    import pyarrow

    types = pyarrow.types
    if types.is_timestamp(kind):
        return pyarrow.timestamp("us", kind.tz)
    if types.is_time64(kind):
        return pyarrow.time64("us")
    if types.is_duration(kind):
        return pyarrow.duration("us")
    if types.is_struct(kind):
        return pyarrow.struct([field.with_type(_told(field.type)) for field in kind])
    if types.is_list(kind):
        return pyarrow.list_(kind.value_field.with_type(_told(kind.value_type)))
    return kind


def _damaged(path: Path) -> DataInvalid:
    message = "the file is damaged, or no Parquet file that can be read"
    return DataInvalid(message, hint="copy it again from its source", where=str(path))
