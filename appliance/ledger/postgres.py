"""PostgreSQL: a database in the datacenter, reached over a Unix socket or TLS with psycopg 3.

Every transaction runs at REPEATABLE READ. A reader has one snapshot, read only. Writers queue on a lock of the table
`head` that is taken before their snapshot, so that they wait for one another as they do on SQLite instead of failing,
and each decides on what the one before it committed. Should anything write without queueing, the head row, locked last
with FOR UPDATE, still stops a fork: every writer changes it, so of two that started from one head the second fails.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError

from appliance.errors import ApplianceError, ArtefactMissing, Busy, ConfigInvalid, IntegrityError, WillNotFit
from appliance.ledger import dialect, postgres_catalogue
from appliance.ledger.dialect import Finding, Purpose, Rows, Statement

DRIVER_ERRORS: tuple[type[BaseException], ...] = (psycopg.Error,)
FOR_UPDATE = " FOR UPDATE"

_ADVISORY_KEY = 0x6C6564676572  # "ledger": one migration at a time
_QUEUE = "LOCK TABLE head IN SHARE ROW EXCLUSIVE MODE"
_names = count()

# What a server must not be set to, because an acknowledged entry could be lost or a guard not run.
_REQUIRED = {"fsync": "on", "full_page_writes": "on", "session_replication_role": "origin", "server_encoding": "UTF8"}

_INSERT = f"INSERT INTO entry ({dialect.ENTRY}) VALUES (?, ?, ?, ?, ?, ?, ?)"  # noqa: S608 (our own names)
_INSERT_MANY = (
    f"INSERT INTO entry ({dialect.ENTRY}) SELECT * FROM unnest("  # noqa: S608 (our own names)
    "%b::int8[], %b::text[], %b::bytea[], %b::bytea[], %b::text[], %b::text[], %b::text[])"
)

_WORDS = {
    "28": (ArtefactMissing, "the ledger's database refuses this role", "see pg_hba.conf and the URL's user"),
    "3D": (ArtefactMissing, "there is no such database", "create it, or name another with `init --db`"),
    "42501": (
        ArtefactMissing,
        "this role may not do that in the ledger's database",
        "the tables' owner upgrades (`ledger upgrade --db-owner URL`), the eraser erases",
    ),
    "25006": (ArtefactMissing, "the ledger's database can only be read here", ""),
    "40": (Busy, "another process changed the ledger meanwhile; nothing was written", "try again"),
    "55P03": (Busy, "another process is writing the ledger", "try again"),
    "57014": (Busy, "the ledger's database cancelled the statement", "try again"),
    "57P": (Busy, "the ledger's database is starting or stopping; what was not acknowledged is undone", "try again"),
    "53300": (Busy, "the ledger's database has no connection left", "try again"),
    "53": (WillNotFit, "the ledger's database is out of disk or memory", "free some space; nothing was lost"),
    "58030": (WillNotFit, "the ledger's disk is full or failing", "free some space; nothing was lost"),
}


def check_url(url: URL) -> None:
    """Raise `ConfigInvalid` unless the URL names a database."""
    if not url.database:
        raise ConfigInvalid(
            "the ledger's database URL names no database",
            hint="postgresql+psycopg://ROLE@/DATABASE?host=/run/postgresql",
        )


def file(url: URL) -> Path | None:
    """Find no file: a server's database is none of ours."""
    return None


def place(url: URL) -> str:
    """Show the URL without its password."""
    return url.render_as_string(hide_password=True)


def engine(url: URL, *, writable: bool, create: bool) -> Engine:
    """Make the engine; nothing connects yet. The database itself is made by its owner, never here.

    A connection is tried before it is used again: the server may have been started anew since.
    """
    created = create_engine(url, hide_parameters=True, use_native_hstore=False, pool_pre_ping=True)

    def prepare(connection: psycopg.Connection[Any], _record: Any) -> None:
        _prepare(connection, writable=writable)

    event.listen(created, "connect", prepare)
    return created


def begin(connection: Connection, purpose: Purpose) -> None:
    """Begin at REPEATABLE READ; a writer queues first, which LOCK TABLE does before the snapshot is taken.

    A migration runs at READ COMMITTED, behind an advisory lock too, since its tables may not be there yet.
    """
    raw = _driver(connection)
    level = psycopg.IsolationLevel.READ_COMMITTED if purpose == "define" else psycopg.IsolationLevel.REPEATABLE_READ
    raw.isolation_level = level
    raw.read_only = purpose == "read"
    if purpose == "write":
        connection.exec_driver_sql(_QUEUE)
    elif purpose == "define":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_ADVISORY_KEY})")
        if "head" in tables(connection):
            connection.exec_driver_sql(_QUEUE)


def after_erasing(connection: Connection) -> None:
    """Do nothing: the server's vacuum, write-ahead log and archives are its administrator's."""


def stream(connection: Connection, sql: str, parameters: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    """Stream the rows of a query through a cursor of the server, in bounded memory."""
    cursor = _driver(connection).cursor(f"ledger_{next(_names)}", binary=True)
    try:
        cursor.execute(sql.replace("?", "%s"), parameters)
        while rows := cursor.fetchmany(dialect.ROWS_AT_ONCE):
            yield from rows
    finally:
        with suppress(psycopg.Error):  # the connection may be gone before an unfinished generator is
            cursor.close()


def run(connection: Connection, statements: Sequence[Statement]) -> Rows:
    """Run statements in order, in a pipeline where there are several."""
    raw = _driver(connection)
    if len(statements) == 1:
        return _rows(_sent(raw, *statements[0]))
    with raw.pipeline():
        cursors = [_sent(raw, *statement) for statement in statements]
    return _rows(cursors[-1])


def insert(rows: Sequence[tuple[Any, ...]]) -> list[Statement]:
    """Write one statement however many rows they are: from as many arrays as there are columns."""
    if len(rows) == 1:
        return [(_INSERT, rows[0])]
    return [(_INSERT_MANY, [list(column) for column in zip(*rows, strict=True)])]


def tables(connection: Connection) -> set[str]:
    """Name the tables that there are."""
    return set(connection.exec_driver_sql(postgres_catalogue.TABLES).scalars())


def definitions(connection: Connection) -> Iterator[tuple[str, str, str, str]]:
    """List tables, constraints, indexes, triggers and their state, functions, rules, policies, inheritance, grants."""
    for query in postgres_catalogue.DEFINITIONS:
        yield from (tuple(row) for row in connection.exec_driver_sql(query))


def storage_problems(connection: Connection) -> Iterator[str]:
    """Run `amcheck` over every index, with the heap, where the extension is installed and this role may use it."""
    if not postgres_catalogue.amcheck_usable(connection):
        return
    for name in connection.exec_driver_sql(postgres_catalogue.OWN_INDEXES).scalars().all():
        try:
            with connection.begin_nested():
                connection.exec_driver_sql("SELECT bt_index_check(%s::regclass, true)", (name,))
        except DBAPIError as error:
            if not isinstance(error.orig, psycopg.errors.DataCorrupted | psycopg.errors.IndexCorrupted):
                raise
            yield f"index {name} of the database is damaged"


def findings(connection: Connection) -> Iterator[Finding]:
    """Say what an administrator may want to change."""
    return postgres_catalogue.findings(connection)


def role(connection: Connection) -> str:
    """Name of the role that the connection has."""
    return str(connection.exec_driver_sql("SELECT current_user").scalar_one())


def explain(error: BaseException | None, where: str) -> ApplianceError:
    """Say what an error of PostgreSQL means, by its SQLSTATE."""
    state = getattr(error, "sqlstate", None) or ""
    for length in (5, 3, 2):
        if len(state) == 5 and state[:length] in _WORDS:
            kind, message, hint = _WORDS[state[:length]]
            return kind(message, where=where, hint=hint)
    if not state and isinstance(error, psycopg.OperationalError):
        return ArtefactMissing(
            "the ledger's database cannot be reached",
            where=where,
            hint="is the server running? A change that was under way is stored wholly or not at all",
        )
    if state[:2] in ("23", "22"):  # the primary message names the guard, table and constraint, never a value
        said = getattr(getattr(error, "diag", None), "message_primary", None) or "it does not fit the columns"
        return IntegrityError(f"the ledger's database refused the change: {said}", where=where)
    return IntegrityError(f"the ledger's database is damaged or not ours (SQLSTATE {state or 'none'})", where=where)


def _prepare(connection: psycopg.Connection[Any], *, writable: bool) -> None:
    connection.autocommit = True
    connection.execute(
        "SET search_path = public, pg_temp; SET synchronous_commit = on; SET timezone = 'UTC'; "
        f"SET lock_timeout = {int(dialect.BUSY_SECONDS * 1000)}"
    )
    if writable:
        names = list(_REQUIRED)
        settings = connection.execute(f"SELECT {', '.join(f'current_setting({name!r})' for name in names)}").fetchone()
        for name, found in zip(names, settings or (), strict=True):
            if found != _REQUIRED[name]:
                raise ConfigInvalid(
                    f"the database server has {name} = {found}, which could lose entries or pass by a guard",
                    hint=f"set {name} = {_REQUIRED[name]}",
                )
    connection.autocommit = False


def _sent(raw: psycopg.Connection[Any], sql: str, parameters: Sequence[Any]) -> psycopg.Cursor[Any]:
    cursor = raw.cursor(binary=True)
    cursor.execute(sql.replace("?", "%s"), parameters)
    return cursor


def _rows(cursor: psycopg.Cursor[Any]) -> Rows:
    return cursor.fetchall() if cursor.description else []


def _driver(connection: Connection) -> psycopg.Connection[Any]:
    raw = connection.connection.driver_connection
    assert isinstance(raw, psycopg.Connection)  # noqa: S101
    return raw
