"""The tables as SQLAlchemy sees them, and the check that the database still has its own tables and guards.

The DDL itself is in `migrations/`; the first entry of the ledger states the digest of every table, index and trigger,
so that an altered definition or a dropped guard is noticed without keeping the DDL twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256

from sqlalchemy import BigInteger, Column, Connection, ForeignKey, Integer, LargeBinary, MetaData, Table, Text

from appliance.ledger import dialect
from appliance.ledger.database import stream

REVISION = "0003"
_SINCE = {"evaluation": "0002", "watermark_key": "0002", "cosig": "0003"}  # the other tables are there since 0001

WHOLE = BigInteger().with_variant(Integer(), "sqlite")  # 64 bits in both; SQLite numbers rows by INTEGER only

metadata = MetaData()


def _event_id() -> Column[str]:
    reference = ForeignKey("entry.event_id", deferrable=True, initially="DEFERRED")
    return Column("event_id", Text, reference, nullable=False)


def _text(*names: str, nullable: bool = False) -> list[Column[str]]:
    return [Column(name, Text, nullable=nullable) for name in names]


def _integer(*names: str, nullable: bool = False) -> list[Column[int]]:
    return [Column(name, WHOLE, nullable=nullable) for name in names]


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
dataset = Table(
    "dataset",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    *_text("purpose", "class", "unit_kind"),
    *_text("unit_key", nullable=True),
    *_integer("max_records", "declared_units"),
    *_text("format", "state", "object_blake3"),
    *_integer("object_bytes", "chunks"),
    *_text("wrapped_key"),
    *_integer("key_epoch"),
    *_text("overlaps", "fingerprints_blake3", "source"),
    _event_id(),
)
model = Table(
    "model",
    metadata,
    Column("id", Text, primary_key=True),
    Column("sha256", Text, nullable=False, unique=True),
    *_text("source_format", "source_sha256", "architecture"),
    *_integer("parameters"),
    *_text("licence"),
    *_integer("has_chat_template"),
    *_text("files", "shapes", "state"),
    _event_id(),
)
run = Table(
    "run",
    metadata,
    Column("id", Text, primary_key=True),
    *_text("name", "dataset_id", "model_id", "state", "spec_sha256", "policy_sha256", "plan"),
    *_integer("reserved_attempts", "recorded_attempts"),
    *_text("recorded_head", nullable=True),
    *_integer("charged_attempts", nullable=True),
    *_text("epsilon_reserved"),
    *_text("epsilon_charged", nullable=True),
    *_text("epsilon_gap", "delta"),
    *_text("adapter_sha256", nullable=True),
    _event_id(),
)
policy = Table(
    "policy",
    metadata,
    Column("sha256", Text, primary_key=True),
    *_text("name", "text", "state"),
    _event_id(),
)

evaluation = Table(
    "evaluation",
    metadata,
    Column("id", Text, primary_key=True),
    *_text("run_id", "dataset_id", "state", "policy_sha256"),
    *_integer("declared_units"),
    *_text("noise_multiplier", "epsilon", "delta", "sampler_delta"),
    _event_id(),
)
watermark_key = Table(
    "watermark_key",
    metadata,
    Column("id", Text, primary_key=True),
    *_text("commitment", "wrapped_key"),
    *_integer("key_epoch"),
    *_text("state"),
    _event_id(),
)

BUSINESS = (dataset, model, run, policy, evaluation, watermark_key)
OWN = frozenset(metadata.tables) | {"alembic_version"}


def tables_since_the_first() -> list[str]:
    """Name the tables that every revision has."""
    return sorted(OWN - _SINCE.keys())


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
