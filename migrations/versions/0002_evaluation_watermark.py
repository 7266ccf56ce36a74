"""Evaluations, which spend from a held-out dataset's budget, and watermark keys.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context, op

revision = "0002"
down_revision = "0001"

WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TABLES = ("evaluation", "watermark_key")
USED = ("EXISTS (SELECT 1 FROM entry WHERE event_id = NEW.event_id)", "a change needs an event of its own")


def upgrade() -> None:
    create_evaluation()
    create_watermark_key()
    if op.get_bind().dialect.name == "sqlite":
        for table in TABLES:
            guard_sqlite(table)
    else:
        for table in TABLES:
            guard_business_postgres(table)
        grant_postgres()


def event_id() -> sa.Column[str]:
    reference = sa.ForeignKey("entry.event_id", deferrable=True, initially="DEFERRED")
    return sa.Column("event_id", sa.Text, reference, nullable=False)


def text(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.Text, nullable=False) for name in names]


def integer(*names: str) -> list[sa.Column[int]]:
    return [sa.Column(name, WHOLE, nullable=False) for name in names]


def create_evaluation() -> None:
    op.create_table(
        "evaluation",
        sa.Column("id", sa.Text, primary_key=True),
        *text("run_id", "dataset_id", "state", "policy_sha256"),
        *integer("declared_units"),
        *text("noise_multiplier", "epsilon", "delta", "sampler_delta"),
        event_id(),
        sqlite_with_rowid=False,
    )


def create_watermark_key() -> None:
    op.create_table(
        "watermark_key",
        sa.Column("id", sa.Text, primary_key=True),
        *text("commitment", "wrapped_key"),
        *integer("key_epoch"),
        *text("state"),
        event_id(),
        sqlite_with_rowid=False,
    )


def guard_sqlite(table: str) -> None:
    """The same three guards as every business table has since the first revision."""
    guard(table, "INSERT", (f"EXISTS (SELECT 1 FROM {table} WHERE id = NEW.id)", "this row exists"), USED)  # noqa: S608
    own = ("NEW.event_id IS OLD.event_id", "a change needs an event of its own")
    guard(table, "UPDATE", ("NEW.id IS NOT OLD.id", "keys are never changed"), USED, own)
    guard(table, "DELETE", ("1", "rows are never deleted"))


def guard(table: str, verb: str, *refusals: tuple[str, str]) -> None:
    """One BEFORE trigger that aborts when any (condition, message) holds."""
    cases = " ".join(f"WHEN {condition} THEN RAISE(ABORT, '{table}: {message}')" for condition, message in refusals)
    op.execute(f"CREATE TRIGGER {table}_{verb.lower()} BEFORE {verb} ON {table} BEGIN SELECT CASE {cases} END; END")


def guard_business_postgres(table: str) -> None:
    """The same four guards as every business table has since the first revision."""
    own = ("NEW.event_id IS NOT DISTINCT FROM OLD.event_id", "a change needs an event of its own")
    guard_postgres(table, "INSERT", USED)
    guard_postgres(table, "UPDATE", ("NEW.id IS DISTINCT FROM OLD.id", "keys are never changed"), USED, own)
    guard_postgres(table, "DELETE", ("TRUE", "rows are never deleted"))
    guard_postgres(table, "TRUNCATE", ("TRUE", "rows are never deleted"))


def guard_postgres(table: str, verb: str, *refusals: tuple[str, str]) -> None:
    """One BEFORE trigger, also for replicated changes, over a function that raises when a condition holds."""
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


def grant_postgres() -> None:
    """Rights of the application's role, where it does not own the tables."""
    roles = context.config.attributes.get("roles")
    if roles is not None and roles.application:
        application = op.get_bind().dialect.identifier_preparer.quote(roles.application)
        op.execute(f"GRANT SELECT, INSERT, UPDATE ON {', '.join(TABLES)} TO {application}")
