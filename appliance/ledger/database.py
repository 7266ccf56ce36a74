"""What is particular to the database: connections, transactions, durability and the meaning of its errors.

SQLite: WAL with synchronous=FULL, every transaction that writes begins IMMEDIATE, foreign keys and recursive triggers
on (without the latter REPLACE deletes rows behind the triggers' back), the schema trusted with nothing.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.pool import QueuePool

from appliance.errors import ApplianceError, ArtefactMissing, Busy, ConfigInvalid, IntegrityError, WillNotFit

_PRAGMAS = (
    "PRAGMA foreign_keys=ON",
    "PRAGMA recursive_triggers=ON",
    "PRAGMA trusted_schema=OFF",
    "PRAGMA cell_size_check=ON",
    "PRAGMA synchronous=FULL",
)
_BUSY_SECONDS = 5.0


class Database:
    """The database of one ledger.

    Args:
      url: an SQLAlchemy URL; `sqlite:////absolute/path`.
      writable: False opens it for reading only.
      create: make the file (mode 0600) where there is none.
    """

    def __init__(self, url: str, *, writable: bool, create: bool = False) -> None:
        self.path = _sqlite_path(url)
        self._writable = writable
        if create:
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        elif not self.path.is_file():
            raise ArtefactMissing("there is no ledger here", where=str(self.path), hint="appliance init")
        self._engine = create_engine("sqlite://", creator=self._connect, poolclass=QueuePool, hide_parameters=True)
        event.listen(self._engine, "begin", _begin)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One snapshot to read from."""
        with self._transaction(immediate=False) as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction: durable when the block is left, rolled back when it raises."""
        with self._transaction(immediate=True) as connection:
            yield connection

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    @contextmanager
    def _transaction(self, *, immediate: bool) -> Iterator[Connection]:
        with self._translated(), self._engine.connect() as connection:
            connection.execution_options(ledger_immediate=immediate)
            with connection.begin():
                yield connection

    def _connect(self) -> sqlite3.Connection:
        # mode=rw: never create an empty database where one has vanished.
        connection = sqlite3.connect(
            f"file:{quote(str(self.path))}?mode=rw",
            uri=True,
            timeout=_BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        for pragma in _PRAGMAS:
            connection.execute(pragma)
        connection.execute("PRAGMA journal_mode=WAL" if self._writable else "PRAGMA query_only=ON")
        return connection

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            raise _explained(error.orig, self.path) from None
        except sqlite3.Error as error:
            raise _explained(error, self.path) from None
        except UnicodeDecodeError:  # the driver fails so on an error message that quotes a damaged definition
            raise IntegrityError("the ledger's database is damaged", where=str(self.path)) from None


def stream(connection: Connection, sql: str, *parameters: Any) -> Iterator[tuple[Any, ...]]:
    """Rows of a query in bounded memory, as the driver gives them: verification compares their very types."""
    cursor = connection.connection.cursor()
    try:
        cursor.execute(sql, parameters)
        while rows := cursor.fetchmany(1000):
            yield from rows
    finally:
        with suppress(sqlite3.ProgrammingError):  # the connection may be gone before an unfinished generator is
            cursor.close()


def _begin(connection: Connection) -> None:
    immediate = connection.get_execution_options().get("ledger_immediate")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def _sqlite_path(url: str) -> Path:
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise ConfigInvalid("the ledger's database URL is malformed") from None
    if parsed.get_backend_name() != "sqlite" or not parsed.database or parsed.database == ":memory:":
        raise ConfigInvalid("the ledger's database must be an SQLite file", hint="sqlite:////absolute/path")
    return Path(parsed.database)


def _explained(error: BaseException | None, path: Path) -> ApplianceError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    where = str(path)
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return Busy("another process is writing the ledger", where=where, hint="try again")
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM):
        return WillNotFit("the ledger's disk is full or failing", where=where, hint="free some space; nothing was lost")
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY):
        return ArtefactMissing("the ledger's database cannot be opened for this", where=where)
    if code == sqlite3.SQLITE_CONSTRAINT:  # its words name the guard, table and column, never a value
        return IntegrityError(f"the ledger's database refused the change: {error}", where=where)
    return IntegrityError("the ledger's database is damaged", where=where)
