"""SQLite: one file in the home.

WAL with synchronous=FULL, every transaction that writes begins IMMEDIATE, foreign keys and recursive triggers on
(without the latter REPLACE deletes rows behind the triggers' back), the schema trusted with nothing.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine
from sqlalchemy.pool import QueuePool

from appliance.errors import ApplianceError, ArtefactMissing, Busy, ConfigInvalid, IntegrityError, WillNotFit
from appliance.files import disk_errors_explained
from appliance.ledger import dialect
from appliance.ledger.dialect import Finding, Purpose, Rows, Statement

DRIVER_ERRORS: tuple[type[BaseException], ...] = (sqlite3.Error,)
FOR_UPDATE = ""  # the one writer has the whole file

_INSERT = f"INSERT INTO entry ({dialect.ENTRY}) VALUES (?, ?, ?, ?, ?, ?, ?)"  # noqa: S608 (our own names)
_PRAGMAS = (
    "PRAGMA foreign_keys=ON",
    "PRAGMA recursive_triggers=ON",
    "PRAGMA trusted_schema=OFF",
    "PRAGMA cell_size_check=ON",
    "PRAGMA synchronous=FULL",
    "PRAGMA secure_delete=ON",  # what an erased body occupied is overwritten
)


def check_url(url: URL) -> None:
    """Raise `ConfigInvalid` unless the URL names a file."""
    if not url.database or url.database == ":memory:":
        raise ConfigInvalid("the ledger's database must be a file", hint="sqlite:////absolute/path")


def file(url: URL) -> Path | None:
    """Find the database's file."""
    return Path(str(url.database))


def place(url: URL) -> str:
    """Show the file, as text."""
    return str(url.database)


def engine(url: URL, *, writable: bool, create: bool) -> Engine:
    """Make the engine over the file; `create` makes an empty one (mode 0600).

    Raises `ArtefactMissing` without a file, `WillNotFit` where none can be made.
    """
    path = Path(str(url.database))
    if create:
        with disk_errors_explained(path):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    elif not path.is_file():
        raise ArtefactMissing("there is no ledger here", where=str(path), hint="appliance init")

    def connect() -> sqlite3.Connection:
        return _connect(path, writable=writable)

    return create_engine("sqlite://", creator=connect, poolclass=QueuePool, hide_parameters=True)


def begin(connection: Connection, purpose: Purpose) -> None:
    """Begin, at once for whoever will write."""
    connection.exec_driver_sql("BEGIN" if purpose == "read" else "BEGIN IMMEDIATE")


def after_erasing(connection: Connection) -> None:
    """Bring the overwritten pages into the file and empty the write-ahead log, unless somebody is reading there."""
    raw = connection.connection.cursor()
    raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    raw.close()


def stream(connection: Connection, sql: str, parameters: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    """Stream the rows of a query in bounded memory."""
    cursor = connection.connection.cursor()
    try:
        cursor.execute(sql, parameters)
        while rows := cursor.fetchmany(dialect.ROWS_AT_ONCE):
            yield from rows
    finally:
        with suppress(sqlite3.ProgrammingError):  # the connection may be gone before an unfinished generator is
            cursor.close()


def run(connection: Connection, statements: Sequence[Statement]) -> Rows:
    """Run statements in order; here each costs no round trip anyway."""
    cursor = connection.connection.cursor()
    try:
        for sql, parameters in statements:
            cursor.execute(sql, parameters)
        return list(cursor.fetchall())
    finally:
        cursor.close()


def insert(rows: Sequence[tuple[Any, ...]]) -> list[Statement]:
    """Write one statement a row: SQLite keeps it compiled."""
    return [(_INSERT, row) for row in rows]


def tables(connection: Connection) -> set[str]:
    """Name the tables that there are."""
    return {name for (name,) in stream(connection, "SELECT name FROM sqlite_master WHERE type = 'table'", ())}


def definitions(connection: Connection) -> Iterator[tuple[str, str, str, str]]:
    """Read SQLite's catalogue: the text of each definition; the index of a constraint has none of its own."""
    return stream(connection, "SELECT type, name, tbl_name, coalesce(sql, '') FROM sqlite_master", ())


def storage_problems(connection: Connection) -> Iterator[str]:
    """Run SQLite's own check: a damaged index cannot change a row, but hide it from a query."""
    for (finding,) in stream(connection, "PRAGMA integrity_check", ()):
        if finding != "ok":
            yield "the database's pages or indexes are damaged"
            return


def findings(connection: Connection) -> Iterator[Finding]:
    """State the version of the library."""
    yield Finding("database", good=True, detail=f"SQLite {sqlite3.sqlite_version}")


def role(connection: Connection) -> str:
    """Name no role: SQLite has none, whoever can write the file is its owner."""
    return ""


def explain(error: BaseException | None, where: str) -> ApplianceError:
    """Say what an error of SQLite means."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return Busy("another process is writing the ledger", where=where, hint="try again")
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM):
        return WillNotFit("the ledger's disk is full or failing", where=where, hint="free some space; nothing was lost")
    if code == sqlite3.SQLITE_CANTOPEN and not _files_can_be_made(Path(where).parent):
        hint = "remove some files, which are too many (`df -i`); nothing was lost"
        return WillNotFit("the ledger's disk has no room for another file", where=where, hint=hint)
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY):
        return ArtefactMissing("the ledger's database cannot be opened for this", where=where)
    if code == sqlite3.SQLITE_CONSTRAINT:  # its words name the guard, table and column, never a value
        return IntegrityError(f"the ledger's database refused the change: {error}", where=where)
    return IntegrityError("the ledger's database is damaged", where=where)


def _files_can_be_made(directory: Path) -> bool:
    """Tell whether there is room for the write-ahead log and shared memory, of which SQLite only says "cannot open"."""
    try:
        with disk_errors_explained(directory), TemporaryFile(dir=directory), TemporaryFile(dir=directory):
            return True
    except WillNotFit:
        return False
    except OSError:  # not a matter of room
        return True


def _connect(path: Path, *, writable: bool) -> sqlite3.Connection:
    # mode=rw: never create an empty database where one has vanished.
    connection = sqlite3.connect(
        f"file:{quote(str(path))}?mode=rw",
        uri=True,
        timeout=dialect.BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )
    for pragma in _PRAGMAS:
        connection.execute(pragma)
    connection.execute("PRAGMA journal_mode=WAL" if writable else "PRAGMA query_only=ON")
    return connection
