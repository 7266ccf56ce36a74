"""Row gateways: the tables of the catalog as values. Changes are staged and written by the append that covers them.

What is read is proved: each row has the digest that the newest entry which covers it states, no row that one covers is
missing, and none is there that none covers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Generic

from sqlalchemy import Connection, Table

from appliance.errors import ApplianceError, ArtefactMissing, Busy, IntegrityError, UsageError
from appliance.ledger import dialect
from appliance.ledger.canonical import LeafInvalid
from appliance.ledger.dialect import Statement
from appliance.ledger.rows import COLUMNS, Row, Value, from_columns, row_digest, to_columns
from appliance.ledger.schema import TABLE_OF


class _Spelled:
    """A table's names, types and statements, spelled once: a commit has no time to build them anew."""

    def __init__(self, table: Table) -> None:
        self.table = str(table.name)  # a `quoted_name` of SQLAlchemy, which is no plain str
        self.names = [str(column.name) for column in table.columns]
        self.key = str(next(iter(table.primary_key.columns)).name)
        self.unique = [str(column.name) for column in table.columns if column.primary_key or column.unique]
        own = [column for column in table.columns if column.name != "event_id"]
        self.types = [(str(column.name), column.type.python_type, bool(column.nullable)) for column in own]
        columns = ", ".join(f'"{name}"' for name in self.names)
        holes = ", ".join("?" * len(self.names))
        changes = ", ".join(f'"{name}" = ?' for name in self.names)
        taken = " UNION ALL ".join(f'SELECT \'{n}\' FROM "{self.table}" WHERE "{n}" = ?' for n in self.unique)  # noqa: S608
        self.all = f'SELECT {columns} FROM "{self.table}"'  # noqa: S608 (our own names, here and in the others)
        self.one = f'{self.all} WHERE "{self.key}" = ?'
        self.insert = f'INSERT INTO "{self.table}" ({columns}) VALUES ({holes})'  # noqa: S608
        self.update = f'UPDATE "{self.table}" SET {changes} WHERE "{self.key}" = ?'  # noqa: S608
        self.taken = taken


_spelled = cache(_Spelled)

Covered = Callable[[str], Mapping[str, str]]
"""Says which rows a table has, by the log: their keys, and the SHA-256 of each."""


class Gateway(Generic[Row]):
    """Reads the rows of one table.

    Args:
      connection: the transaction to read in.
      kind: the class of its rows.
      covered: what they are compared with; None believes the database.
    """

    def __init__(self, connection: Connection, kind: type[Row], covered: Covered | None) -> None:
        self._connection = connection
        self._sql = _spelled(TABLE_OF[kind])
        self._kind = kind
        self._covered = covered
        self._staged: dict[str, Row] = {}

    def get(self, key: str) -> Row:
        """Read the row with this key. Raises `ArtefactMissing`, or `IntegrityError` if it is not as it was written."""
        row = self.find(key)
        if row is None:
            raise ArtefactMissing(f"there is no {self._sql.table} {key}")
        return row

    def find(self, key: str) -> Row | None:
        """Read the row with this key, or None."""
        if key in self._staged:
            return self._staged[key]
        covered = None
        if self._covered is not None:
            digests = self._covered(self._sql.table)
            covered = {key: digests[key]} if key in digests else {}
        return self._find_stored(covered, self._sql.one, key).get(key)

    def list(self) -> Sequence[Row]:
        """Read all rows, ordered by key."""
        covered = None if self._covered is None else dict(self._covered(self._sql.table))
        merged = self._find_stored(covered, self._sql.all) | self._staged
        return [merged[key] for key in sorted(merged)]

    def _run(self, sql: str, *parameters: Value) -> dialect.Rows:
        return dialect.of(self._connection).run(self._connection, [(sql, parameters)])

    def _find_stored(self, left: dict[str, str] | None, sql: str, *parameters: Value) -> dict[str, Row]:
        """Read rows and prove them: they must be exactly those that are `left`, which none is then."""
        found: dict[str, Row] = {}
        for values in self._run(sql, *parameters):
            columns = dict(zip(self._sql.names, values, strict=True))
            key = columns[self._sql.key]
            if left is not None and left.pop(key, None) != self._digest(columns):
                raise IntegrityError(f"{self._sql.table} {key} is not what the ledger says of it")
            found[key] = from_columns(self._kind, columns)
        if left:
            raise IntegrityError(f"{self._sql.table} {min(left)} is missing from the database")
        return found

    def _digest(self, columns: Mapping[str, Any]) -> str:
        try:
            return row_digest(self._sql.table, columns)
        except LeafInvalid:
            return ""


class WritableGateway(Gateway[Row]):
    """Reads and stages rows of one table; reading sees what is staged.

    Args:
      connection: the transaction.
      kind: the class of its rows.
      covered: what they are compared with.
      permit: called before anything is staged; raises when it is too late.
    """

    def __init__(self, connection: Connection, kind: type[Row], covered: Covered, permit: Callable[[], None]) -> None:
        super().__init__(connection, kind, covered)
        self._permit = permit
        self._new: set[str] = set()

    def add(self, row: Row) -> None:
        """Stage a new row. Raises `UsageError` when its key or another unique column is taken."""
        self._permit()
        columns = self._check(row)
        if (taken := self._find_taken(columns)) is not None:
            raise UsageError(f"there is already a {self._sql.table} with {taken} {columns[taken]}")
        key = str(columns[self._sql.key])
        self._staged[key] = row
        self._new.add(key)

    def update(self, before: Row, **changes: Any) -> Row:
        """Stage changes of fields of a row and return the row as it will be.

        Args:
          before: the row as it was read, by which the changes were decided.
          **changes: fields that change.

        Raises:
          ArtefactMissing: it is not there any more.
          Busy: somebody else has changed it since it was read.
        """
        self._permit()
        unknown = changes.keys() - {column.field for column in COLUMNS[self._kind]}
        if unknown or self._sql.key in changes:
            raise ApplianceError(f"a {self._sql.table} has no changeable field {', '.join(sorted(unknown)) or 'key'}")
        key = str(to_columns(before)[self._sql.key])
        if self.get(key) != before:
            raise Busy(f"{self._sql.table} {key} was changed meanwhile; nothing was written", hint="try again")
        row = dataclasses.replace(before, **changes)
        self._check(row)
        if row != before:
            self._staged[key] = row
        return row

    @property
    def dirty(self) -> bool:
        """Whether rows are staged."""
        return bool(self._staged)

    def flush(self, event_id: str) -> tuple[list[Statement], list[dict[str, str]]]:
        """Prepare what writes the staged rows under the event, and what its leaf says of them: table, key, SHA-256."""
        statements: list[Statement] = []
        covered = []
        for key, row in sorted(self._staged.items()):
            columns: dict[str, Any] = to_columns(row) | {"event_id": event_id}
            values = [columns[name] for name in self._sql.names]
            new = key in self._new
            statements.append((self._sql.insert, values) if new else (self._sql.update, [*values, key]))
            covered.append({"table": self._sql.table, "key": key, "sha256": row_digest(self._sql.table, columns)})
        self._staged.clear()
        return statements, covered

    def _find_taken(self, columns: dict[str, Value]) -> str | None:
        """Name of a unique column whose value another row has, stored or staged."""
        wanted = {name: columns[name] for name in self._sql.unique}
        for other in map(to_columns, self._staged.values()):
            if found := next((name for name in wanted if other[name] == wanted[name]), None):
                return found
        rows = self._run(self._sql.taken, *wanted.values())
        return str(rows[0][0]) if rows else None

    def _check(self, row: Row) -> dict[str, Value]:
        """Check each column of the row against its type: SQLite itself would store anything anywhere."""
        columns = to_columns(row)
        for name, wanted, nullable in self._sql.types:
            value = columns.get(name)
            if type(value) is not wanted and not (value is None and nullable):
                raise ApplianceError(f"{self._sql.table}.{name} cannot be a {type(value).__name__}")
        return columns
