"""The tables as SQLAlchemy sees them, and the check that the database still has its own tables and guards.

The DDL itself is in `migrations/`; the first entry of the ledger states the digest of every table, index and trigger,
so that an altered definition or a dropped guard is noticed without keeping the DDL twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from sqlalchemy import BigInteger, Column, Connection, ForeignKey, Integer, LargeBinary, MetaData, Table, Text

from appliance.ledger import dialect
from appliance.ledger.database import stream
from appliance.ledger.rows import COLUMNS, ROWS, CatalogRow

WHOLE = BigInteger().with_variant(Integer(), "sqlite")  # 64 bits in both; SQLite numbers rows by INTEGER only

metadata = MetaData()


entry = Table(
    "entry",
    metadata,
    Column("idx", WHOLE, primary_key=True),
    Column("event_id", Text, nullable=False, unique=True),
    Column("leaf", LargeBinary, nullable=False),
    Column("leaf_hash", LargeBinary, nullable=False),
    Column("type", Text, nullable=False),
    Column("ts", Text, nullable=False),
    Column("subject", Text),
)
body = Table("body", metadata, Column("idx", WHOLE, primary_key=True), Column("sealed", LargeBinary, nullable=False))
tile = Table(
    "tile",
    metadata,
    Column("level", WHOLE, primary_key=True),
    Column("n", WHOLE, primary_key=True),
    Column("root", LargeBinary, nullable=False),
    Column("hashes", LargeBinary, nullable=False),
)
head = Table(
    "head",
    metadata,
    Column("id", WHOLE, primary_key=True),
    Column("size", WHOLE, nullable=False),
    Column("frontier", LargeBinary, nullable=False),
)
tree_head = Table(
    "tree_head",
    metadata,
    Column("n", WHOLE, primary_key=True),
    Column("size", WHOLE, nullable=False, unique=True),
    Column("note", Text, nullable=False),
)
cosig = Table(
    "cosig",
    metadata,
    Column("size", WHOLE, primary_key=True),
    Column("witness", Text, primary_key=True),
    Column("line", Text, nullable=False),
)


def _table_of(kind: type[CatalogRow]) -> Table:
    (key, *rest) = COLUMNS[kind]
    columns: list[Column[Any]] = [Column(key.name, Text, primary_key=True)]
    for column in rest:
        text_or_whole: Any = WHOLE if column.whole else Text
        unique = column.name in kind.unique or None
        columns.append(Column(column.name, text_or_whole, nullable=column.nullable, unique=unique))
    reference = ForeignKey("entry.event_id", deferrable=True, initially="DEFERRED")
    return Table(kind.table, metadata, *columns, Column("event_id", Text, reference, nullable=False))


TABLE_OF = {kind: _table_of(kind) for kind in ROWS}
"""The tables of the catalog: the columns of their rows, and the event that wrote each row last."""
OWN = frozenset(metadata.tables) | {"alembic_version"}
_SINCE = {kind.table: kind.since for kind in ROWS} | {"cosig": "0003"}  # the others are there since 0001
REVISION = max(_SINCE.values())


def tables_since_the_first() -> list[str]:
    """Name the tables that every revision has."""
    return sorted(name for name in OWN if _SINCE.get(name, "0001") == "0001")


def present(connection: Connection, table: Table) -> bool:
    """Tell whether the database has this table; one of an older revision may not."""
    return str(table.name) in dialect.of(connection).tables(connection)


def revision_of(definitions: Mapping[str, str]) -> str:
    """Find the revision that these definitions are of."""
    return max((since for name, since in _SINCE.items() if f"table {name}" in definitions), default="0001")


def schema_digests(connection: Connection) -> dict[str, str]:
    """Digest (hex SHA-256) every definition that belongs to our tables, by kind and name ("trigger entry_update")."""
    texts: dict[str, list[str]] = {}
    for kind, name, table, definition in dialect.of(connection).definitions(connection):
        if table in OWN or name in OWN:
            texts.setdefault(f"{kind} {name}", []).append(f"{table}\n{definition}")
    # Two things of one name, on two tables, count as one: PostgreSQL allows that.
    return {name: sha256("\n".join(sorted(found)).encode()).hexdigest() for name, found in texts.items()}


def schema_problems(connection: Connection, expected: Mapping[str, str]) -> list[str]:
    """Say what is wrong with the definitions; tables of others are tolerated, guards added to ours are not."""
    actual = schema_digests(connection)
    problems = [f"{name} is missing from the database" for name in expected.keys() - actual.keys()]
    problems += [f"{name} was added to the database" for name in actual.keys() - expected.keys()]
    problems += [
        f"{name} was altered in the database"
        for name in expected.keys() & actual.keys()
        if expected[name] != actual[name]
    ]
    revisions = list(stream(connection, "SELECT * FROM alembic_version")) if "table alembic_version" in actual else []
    if revisions != [(revision_of(expected),)]:
        problems.append(f"the database is not at revision {revision_of(expected)}")
    return sorted(problems)
