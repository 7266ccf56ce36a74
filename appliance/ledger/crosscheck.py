"""Business rows against the entries that cover them, both ways, and the definitions against what the ledger says."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection, Table

from appliance.ledger import dialect, schema
from appliance.ledger.canonical import LeafInvalid
from appliance.ledger.database import stream
from appliance.ledger.problems import Problems
from appliance.ledger.rows import row_digest


def check_rows(
    connection: Connection, covered: Mapping[tuple[str, str], tuple[int, str, str]], problems: Problems
) -> None:
    """Compare every business row with what the last entry that covers it says; every covered row must exist."""
    left = dict(covered)
    for table in (table for table in schema.TABLE_OF.values() if schema.present(connection, table)):
        names = [str(column.name) for column in table.columns]
        quoted = ", ".join(f'"{name}"' for name in names)
        for values in stream(connection, f'SELECT {quoted} FROM "{table.name}"'):  # noqa: S608 (our own names)
            columns = dict(zip(names, values, strict=True))
            key = columns[next(iter(table.primary_key.columns)).name]
            _check_row(table, key, columns, left.pop((table.name, key), None), problems)
    for (name, key), (index, _, _) in left.items():
        problems.add(f"{name} {key} is missing; entry {index} covers it", index)


def _check_row(
    table: Table, key: object, columns: Mapping[str, object], stated: tuple[int, str, str] | None, problems: Problems
) -> None:
    if stated is None:
        problems.add(f"{table.name} {key} has no entry that covers it")
        return
    index, event_id, digest = stated
    try:
        same = row_digest(str(table.name), columns) == digest
    except LeafInvalid:
        same = False
    if not same or columns["event_id"] != event_id:
        problems.add(f"{table.name} {key} is not what entry {index} says", index)


def check_storage(connection: Connection, problems: Problems) -> None:
    """Run the database's own check of its pages and indexes: a damaged index cannot change a row, but hide it."""
    for problem in dialect.of(connection).storage_problems(connection):
        problems.add(problem)


def check_definitions(connection: Connection, expected: Mapping[str, str], problems: Problems) -> None:
    """Compare tables, indexes and guards with those that the ledger states."""
    for problem in schema.schema_problems(connection, expected):
        problems.add(problem)
