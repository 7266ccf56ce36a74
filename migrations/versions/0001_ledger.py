"""The tables of the log and of the catalog, with their guards.

Revision ID: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

BUSINESS = {"dataset": ("id", "name"), "model": ("id", "sha256"), "run": ("id",), "policy": ("sha256",)}


def upgrade() -> None:
    create_log()
    create_catalog()
    if op.get_bind().dialect.name == "sqlite":
        guard_log_sqlite()
        for table, unique in BUSINESS.items():
            guard_business_sqlite(table, unique)
    op.execute("INSERT INTO head (id, size, frontier) VALUES (1, 0, X'')")


def create_log() -> None:
    op.create_table(
        "entry",
        sa.Column("idx", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("event_id", sa.Text, nullable=False, unique=True),
        sa.Column("leaf", sa.LargeBinary, nullable=False),
        sa.Column("leaf_hash", sa.LargeBinary, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("ts", sa.Text, nullable=False),
        sa.Column("subject", sa.Text),
    )
    op.create_index("entry_by_type", "entry", ["type", "idx"])
    op.create_index("entry_by_subject", "entry", ["subject", "idx"], sqlite_where=sa.text("subject IS NOT NULL"))
    op.create_table(
        "body",
        sa.Column("idx", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "tile",
        sa.Column("level", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("n", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("root", sa.LargeBinary, nullable=False),
        sa.Column("hashes", sa.LargeBinary, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "head",
        sa.Column("id", sa.Integer, sa.CheckConstraint("id = 1"), primary_key=True, autoincrement=False),
        sa.Column("size", sa.Integer, nullable=False),
        sa.Column("frontier", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "tree_head",
        sa.Column("n", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("size", sa.Integer, nullable=False, unique=True),
        sa.Column("note", sa.Text, nullable=False),
    )


def event_id() -> sa.Column[str]:
    reference = sa.ForeignKey("entry.event_id", deferrable=True, initially="DEFERRED")
    return sa.Column("event_id", sa.Text, reference, nullable=False)


def text(*names: str, nullable: bool = False) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.Text, nullable=nullable) for name in names]


def integer(*names: str, nullable: bool = False) -> list[sa.Column[int]]:
    return [sa.Column(name, sa.Integer, nullable=nullable) for name in names]


def create_catalog() -> None:
    op.create_table(
        "dataset",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        *text("purpose", "class", "unit_kind"),
        *text("unit_key", nullable=True),
        *integer("max_records", "declared_units"),
        *text("format", "state", "object_blake3"),
        *integer("object_bytes", "chunks"),
        *text("wrapped_key"),
        *integer("key_epoch"),
        *text("overlaps", "fingerprints_blake3", "source"),
        event_id(),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "model",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("sha256", sa.Text, nullable=False, unique=True),
        *text("source_format", "source_sha256", "architecture"),
        *integer("parameters"),
        *text("licence"),
        *integer("has_chat_template"),
        *text("files", "shapes", "state"),
        event_id(),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "run",
        sa.Column("id", sa.Text, primary_key=True),
        *text("name", "dataset_id", "model_id", "state", "spec_sha256", "policy_sha256", "plan"),
        *integer("reserved_attempts", "recorded_attempts"),
        *text("recorded_head", nullable=True),
        *integer("charged_attempts", nullable=True),
        *text("epsilon_reserved"),
        *text("epsilon_charged", nullable=True),
        *text("epsilon_gap", "delta"),
        *text("adapter_sha256", nullable=True),
        event_id(),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "policy",
        sa.Column("sha256", sa.Text, primary_key=True),
        *text("name", "text", "state"),
        event_id(),
        sqlite_with_rowid=False,
    )


def guard(table: str, verb: str, *refusals: tuple[str, str]) -> None:
    """One BEFORE trigger that aborts when any (condition, message) holds."""
    cases = " ".join(f"WHEN {condition} THEN RAISE(ABORT, '{table}: {message}')" for condition, message in refusals)
    op.execute(f"CREATE TRIGGER {table}_{verb.lower()} BEFORE {verb} ON {table} BEGIN SELECT CASE {cases} END; END")


def guard_log_sqlite() -> None:
    guard(
        "entry",
        "INSERT",
        ("NEW.idx <> (SELECT coalesce(max(idx) + 1, 0) FROM entry)", "entries are numbered without gaps"),
        ("EXISTS (SELECT 1 FROM entry WHERE event_id = NEW.event_id)", "this event exists"),
    )
    for table in ("body", "head"):
        key = "idx" if table == "body" else "id"
        guard(table, "INSERT", (f"EXISTS (SELECT 1 FROM {table} WHERE {key} = NEW.{key})", "this row exists"))  # noqa: S608
    guard("tile", "INSERT", ("EXISTS (SELECT 1 FROM tile WHERE level = NEW.level AND n = NEW.n)", "this row exists"))
    guard(
        "tree_head",
        "INSERT",
        ("NEW.n <> (SELECT coalesce(max(n) + 1, 0) FROM tree_head)", "tree heads are numbered without gaps"),
        ("NEW.size <= (SELECT max(size) FROM tree_head)", "tree heads grow"),
    )
    for table in ("entry", "body", "tile", "tree_head"):
        guard(table, "UPDATE", ("1", "rows are never changed"))
    guard("head", "UPDATE", ("NEW.id <> OLD.id OR NEW.size <= OLD.size", "the log only grows"))
    for table in ("entry", "tile", "head", "tree_head"):
        guard(table, "DELETE", ("1", "rows are never deleted"))
    erased = "SELECT 1 FROM entry WHERE type = 'body.erased' AND subject = CAST(OLD.idx AS TEXT)"
    guard("body", "DELETE", (f"NOT EXISTS ({erased})", "no entry says that this body was erased"))


def guard_business_sqlite(table: str, unique: tuple[str, ...]) -> None:
    """A row changes only with a new event, one that is not in the log yet: its entry follows in the transaction.

    Every unique column is checked here because REPLACE deletes the rows it conflicts with, and on a connection
    without recursive_triggers the DELETE guard would not see it.
    """
    used = ("EXISTS (SELECT 1 FROM entry WHERE event_id = NEW.event_id)", "a change needs an event of its own")
    taken = " OR ".join(f"{column} = NEW.{column}" for column in unique)
    key, *others = unique
    exists = f"EXISTS (SELECT 1 FROM {table} WHERE"  # noqa: S608 (our own names)
    guard(table, "INSERT", (f"{exists} {taken})", "this row exists"), used)
    refusals = [(f"NEW.{key} IS NOT OLD.{key}", "keys are never changed"), used]
    refusals += [(f"{exists} {column} = NEW.{column} AND {key} <> OLD.{key})", "this row exists") for column in others]
    refusals.append(("NEW.event_id IS OLD.event_id", "a change needs an event of its own"))
    guard(table, "UPDATE", *refusals)
    guard(table, "DELETE", ("1", "rows are never deleted"))
