"""The tables of the log and of the catalog, with their guards.

Revision ID: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context, op

revision = "0001"
down_revision = None

WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
HAS_SUBJECT = sa.text("subject IS NOT NULL")
BUSINESS = {"dataset": ("id", "name"), "model": ("id", "sha256"), "run": ("id",), "policy": ("sha256",)}


def upgrade() -> None:
    create_log()
    create_catalog()
    if op.get_bind().dialect.name == "sqlite":
        guard_log_sqlite()
        for table, unique in BUSINESS.items():
            guard_business_sqlite(table, unique)
        op.execute("INSERT INTO head (id, size, frontier) VALUES (1, 0, X'')")
    else:
        op.execute("INSERT INTO head (id, size, frontier) VALUES (1, 0, '')")
        guard_log_postgres()
        for table in BUSINESS:
            guard_business_postgres(table)
        grant_postgres()


def create_log() -> None:
    op.create_table(
        "entry",
        sa.Column("idx", WHOLE, primary_key=True, autoincrement=False),
        sa.Column("event_id", sa.Text, nullable=False, unique=True),
        sa.Column("leaf", sa.LargeBinary, nullable=False),
        sa.Column("leaf_hash", sa.LargeBinary, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("ts", sa.Text, nullable=False),
        sa.Column("subject", sa.Text),
    )
    op.create_index("entry_by_type", "entry", ["type", "idx"])
    op.create_index(
        "entry_by_subject", "entry", ["subject", "idx"], sqlite_where=HAS_SUBJECT, postgresql_where=HAS_SUBJECT
    )
    op.create_table(
        "body",
        sa.Column("idx", WHOLE, primary_key=True, autoincrement=False),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "tile",
        sa.Column("level", WHOLE, primary_key=True, autoincrement=False),
        sa.Column("n", WHOLE, primary_key=True, autoincrement=False),
        sa.Column("root", sa.LargeBinary, nullable=False),
        sa.Column("hashes", sa.LargeBinary, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "head",
        sa.Column("id", WHOLE, sa.CheckConstraint("id = 1"), primary_key=True, autoincrement=False),
        sa.Column("size", WHOLE, nullable=False),
        sa.Column("frontier", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "tree_head",
        sa.Column("n", WHOLE, primary_key=True, autoincrement=False),
        sa.Column("size", WHOLE, nullable=False, unique=True),
        sa.Column("note", sa.Text, nullable=False),
    )


def event_id() -> sa.Column[str]:
    reference = sa.ForeignKey("entry.event_id", deferrable=True, initially="DEFERRED")
    return sa.Column("event_id", sa.Text, reference, nullable=False)


def text(*names: str, nullable: bool = False) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.Text, nullable=nullable) for name in names]


def integer(*names: str, nullable: bool = False) -> list[sa.Column[int]]:
    return [sa.Column(name, WHOLE, nullable=nullable) for name in names]


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


def guard_postgres(table: str, verb: str, *refusals: tuple[str, str]) -> None:
    """One BEFORE trigger, which fires for replicated changes too, over a function that raises when a condition holds.

    The function looks tables up in our schema only, whatever the session that fires it has set.
    """
    words = "RAISE EXCEPTION '{0}: {2}' USING ERRCODE = 'integrity_constraint_violation'"
    checks = " ".join(f"IF {c} THEN {words.format(table, c, m)}; END IF;" for c, m in refusals)
    name, row = f"{table}_{verb.lower()}", "OLD" if verb == "DELETE" else "NEW"
    op.execute(
        f"CREATE FUNCTION guard_{name}() RETURNS trigger LANGUAGE plpgsql "
        f"SET search_path = pg_catalog, public, pg_temp AS $$ BEGIN {checks} RETURN {row}; END $$"
    )
    each = "STATEMENT" if verb == "TRUNCATE" else "ROW"
    op.execute(f"CREATE TRIGGER {name} BEFORE {verb} ON {table} FOR EACH {each} EXECUTE FUNCTION guard_{name}()")
    op.execute(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {name}")


def guard_log_postgres() -> None:
    """Unlike REPLACE on SQLite, nothing here can overwrite a row behind a trigger, so unique keys guard inserts."""
    gap = "NEW.idx <> 0 AND NOT EXISTS (SELECT 1 FROM entry WHERE idx = NEW.idx - 1)"  # the key sees to the rest
    guard_postgres("entry", "INSERT", (gap, "entries are numbered without gaps"))
    guard_postgres("head", "INSERT", ("TRUE", "this row exists"))
    guard_postgres(
        "tree_head",
        "INSERT",
        ("NEW.n <> (SELECT coalesce(max(n) + 1, 0) FROM tree_head)", "tree heads are numbered without gaps"),
        ("NEW.size <= (SELECT max(size) FROM tree_head)", "tree heads grow"),
    )
    for table in ("entry", "body", "tile", "tree_head"):
        guard_postgres(table, "UPDATE", ("TRUE", "rows are never changed"))
    guard_postgres("head", "UPDATE", ("NEW.id <> OLD.id OR NEW.size <= OLD.size", "the log only grows"))
    for table in ("entry", "tile", "head", "tree_head"):
        guard_postgres(table, "DELETE", ("TRUE", "rows are never deleted"))
    erased = "SELECT 1 FROM entry WHERE type = 'body.erased' AND subject = CAST(OLD.idx AS TEXT)"
    guard_postgres("body", "DELETE", (f"NOT EXISTS ({erased})", "no entry says that this body was erased"))
    for table in ("entry", "body", "tile", "head", "tree_head"):
        guard_postgres(table, "TRUNCATE", ("TRUE", "rows are never deleted"))


def guard_business_postgres(table: str) -> None:
    """A row changes only with a new event, one that is not in the log yet: its entry follows in the transaction."""
    used = ("EXISTS (SELECT 1 FROM entry WHERE event_id = NEW.event_id)", "a change needs an event of its own")
    key = BUSINESS[table][0]
    guard_postgres(table, "INSERT", used)
    moved = (f"NEW.{key} IS DISTINCT FROM OLD.{key}", "keys are never changed")
    kept = ("NEW.event_id IS NOT DISTINCT FROM OLD.event_id", "a change needs an event of its own")
    guard_postgres(table, "UPDATE", moved, used, kept)
    guard_postgres(table, "DELETE", ("TRUE", "rows are never deleted"))
    guard_postgres(table, "TRUNCATE", ("TRUE", "rows are never deleted"))


def grant_postgres() -> None:
    """Rights of the two roles that do not own the tables, where there are such."""
    roles = context.config.attributes.get("roles")
    quote = op.get_bind().dialect.identifier_preparer.quote
    if roles is not None and roles.application:
        application = quote(roles.application)
        op.execute(f"GRANT SELECT, INSERT ON entry, body, tile, tree_head, {', '.join(BUSINESS)} TO {application}")
        op.execute(f"GRANT SELECT, UPDATE ON head TO {application}")
        op.execute(f"GRANT UPDATE ON {', '.join(BUSINESS)} TO {application}")
        op.execute(f"GRANT SELECT ON alembic_version TO {application}")
    if roles is not None and roles.eraser:
        op.execute(f"GRANT SELECT ON entry, body TO {quote(roles.eraser)}")
        op.execute(f"GRANT DELETE ON body TO {quote(roles.eraser)}")
