"""Cosignatures of witnesses on tree heads.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context, op

revision = "0003"
down_revision = "0002"

WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "cosig",
        sa.Column("size", WHOLE, primary_key=True, autoincrement=False),
        sa.Column("witness", sa.Text, primary_key=True),
        sa.Column("line", sa.Text, nullable=False),
        sqlite_with_rowid=False,
    )
    if op.get_bind().dialect.name == "sqlite":
        guard_sqlite()
    else:
        guard_postgres()
        grant_postgres()


def guard_sqlite() -> None:
    """Rows are added only; the INSERT guard stops REPLACE."""
    taken = "EXISTS (SELECT 1 FROM cosig WHERE size = NEW.size AND witness = NEW.witness)"
    for verb, condition, message in (
        ("INSERT", taken, "this row exists"),
        ("UPDATE", "1", "rows are never changed"),
        ("DELETE", "1", "rows are never deleted"),
    ):
        case = f"WHEN {condition} THEN RAISE(ABORT, 'cosig: {message}')"
        op.execute(f"CREATE TRIGGER cosig_{verb.lower()} BEFORE {verb} ON cosig BEGIN SELECT CASE {case} END; END")


def guard_postgres() -> None:
    """Rows are added only, also by a replication process."""
    for verb in ("UPDATE", "DELETE", "TRUNCATE"):
        name, each = f"cosig_{verb.lower()}", "STATEMENT" if verb == "TRUNCATE" else "ROW"
        message = "rows are never changed" if verb == "UPDATE" else "rows are never deleted"
        op.execute(
            f"CREATE FUNCTION guard_{name}() RETURNS trigger LANGUAGE plpgsql "
            f"SET search_path = pg_catalog, public, pg_temp AS $$ BEGIN "
            f"RAISE EXCEPTION 'cosig: {message}' USING ERRCODE = 'integrity_constraint_violation'; END $$"
        )
        op.execute(f"CREATE TRIGGER {name} BEFORE {verb} ON cosig FOR EACH {each} EXECUTE FUNCTION guard_{name}()")
        op.execute(f"ALTER TABLE cosig ENABLE ALWAYS TRIGGER {name}")


def grant_postgres() -> None:
    """Rights of the application's role, where it does not own the tables."""
    roles = context.config.attributes.get("roles")
    if roles is not None and roles.application:
        application = op.get_bind().dialect.identifier_preparer.quote(roles.application)
        op.execute(f"GRANT SELECT, INSERT ON cosig TO {application}")
