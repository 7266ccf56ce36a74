"""Row gateways: the tables of the catalog as values. Changes are staged and written by the append that covers them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Generic

from sqlalchemy import Connection, Table, select, update

from appliance.errors import ApplianceError, ArtefactMissing, UsageError
from appliance.ledger.rows import Row, Value, from_columns, row_digest, to_columns


class Gateway(Generic[Row]):
    """Reads the rows of one table.

    Args:
      connection: the transaction to read in.
      table: the table; its first column is the key.
      kind: the class of its rows.
    """

    def __init__(self, connection: Connection, table: Table, kind: type[Row]) -> None:
        self._connection = connection
        self._table = table
        self._kind = kind
        self._key = next(iter(table.primary_key.columns))
        self._staged: dict[str, Row] = {}

    def get(self, key: str) -> Row:
        """The row with this key. Raises `ArtefactMissing`."""
        row = self.find(key)
        if row is None:
            raise ArtefactMissing(f"there is no {self._table.name} {key}")
        return row

    def find(self, key: str) -> Row | None:
        """The row with this key, or None."""
        if key in self._staged:
            return self._staged[key]
        found = self._connection.execute(select(self._table).where(self._key == key)).one_or_none()
        return None if found is None else from_columns(self._kind, found._mapping)

    def list(self) -> Sequence[Row]:
        """All rows, ordered by key."""
        stored = self._connection.execute(select(self._table)).all()
        rows = [from_columns(self._kind, found._mapping) for found in stored]
        merged = {to_columns(row)[self._key.name]: row for row in rows} | dict(self._staged)
        return [merged[key] for key in sorted(merged, key=str)]


class WritableGateway(Gateway[Row]):
    """Reads and stages rows of one table; reading sees what is staged.

    Args:
      connection: the transaction.
      table: the table.
      kind: the class of its rows.
      permit: called before anything is staged; raises when it is too late.
    """

    def __init__(self, connection: Connection, table: Table, kind: type[Row], permit: Callable[[], None]) -> None:
        super().__init__(connection, table, kind)
        self._permit = permit
        self._new: set[str] = set()

    def add(self, row: Row) -> None:
        """Stage a new row. Raises `UsageError` when its key or another unique column is taken."""
        self._permit()
        columns = self._checked(row)
        for column in self._table.columns:
            if (column.primary_key or column.unique) and self._taken(column.name, columns[column.name]):
                raise UsageError(f"there is already a {self._table.name} with {column.name} {columns[column.name]}")
        key = str(columns[self._key.name])
        self._staged[key] = row
        self._new.add(key)

    def update(self, key: str, **changes: Any) -> Row:
        """Stage changes of fields of a row and return the row as it will be. Raises `ArtefactMissing`."""
        self._permit()
        before = self.get(key)
        unknown = changes.keys() - {field.name for field in dataclasses.fields(before)}
        if unknown or self._key.name in changes:
            raise ApplianceError(f"a {self._table.name} has no changeable field {', '.join(sorted(unknown)) or 'key'}")
        row = dataclasses.replace(before, **changes)
        self._checked(row)
        if row != before:
            self._staged[key] = row
        return row

    @property
    def dirty(self) -> bool:
        """Whether rows are staged."""
        return bool(self._staged)

    def flush(self, event_id: str) -> list[dict[str, str]]:
        """Write the staged rows under the event and return what its leaf says of them: table, key, SHA-256."""
        covered = []
        for key, row in sorted(self._staged.items()):
            columns: dict[str, Any] = to_columns(row) | {"event_id": event_id}
            if key in self._new:
                self._connection.execute(self._table.insert(), columns)
            else:
                self._connection.execute(update(self._table).where(self._key == key).values(columns))
            name = str(self._table.name)  # a `quoted_name` of SQLAlchemy, which is no plain str
            covered.append({"table": name, "key": key, "sha256": row_digest(name, columns)})
        self._staged.clear()
        return covered

    def _taken(self, column: str, value: Value) -> bool:
        query = select(self._key).where(self._table.c[column] == value)
        return self._connection.execute(query).first() is not None or any(
            to_columns(row)[column] == value for row in self._staged.values()
        )

    def _checked(self, row: Row) -> dict[str, Value]:
        """Columns of the row, each of the type its column has: SQLite itself would store anything anywhere."""
        columns = to_columns(row)
        for column in self._table.columns:
            value = columns.get(column.name)
            allowed = value is None and column.nullable
            if column.name != "event_id" and not allowed and type(value) is not column.type.python_type:
                raise ApplianceError(f"{self._table.name}.{column.name} cannot be a {type(value).__name__}")
        return columns
