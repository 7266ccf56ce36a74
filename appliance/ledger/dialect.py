"""What one kind of database does in its own way. `sqlite` and `postgres` are the two modules that do it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from sqlalchemy import URL, Connection, Engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from appliance.errors import ApplianceError, ConfigInvalid

BUSY_SECONDS = 30.0  # how long a writer waits for another one, whom a slow disk may hold up
ROWS_AT_ONCE = 1000
ENTRY = "idx, event_id, leaf, leaf_hash, type, ts, subject"  # columns of the table `entry`, in order

_MODULES = {"sqlite": "appliance.ledger.sqlite", "postgresql+psycopg": "appliance.ledger.postgres"}
_BACKENDS = {name.partition("+")[0]: module for name, module in _MODULES.items()}

Purpose = Literal["read", "write", "define", "erase"]
Statement = tuple[str, Sequence[Any]]  # SQL with `?` for parameters, and these
Rows = list[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Roles:
    """Names of the database roles that the owner's migration grants rights to; empty where there is none.

    Attributes:
      application: reads everything, adds rows, changes the head and business rows.
      eraser: deletes bodies.
    """

    application: str = ""
    eraser: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that can be said of a database's set-up, and whether it is as it should be."""

    name: str
    good: bool
    detail: str


class Dialect(Protocol):
    """One kind of database."""

    DRIVER_ERRORS: tuple[type[BaseException], ...]
    FOR_UPDATE: str  # ends a query whose rows are to be locked for the rest of the transaction

    def check_url(self, url: URL) -> None:
        """Raise `ConfigInvalid` unless this URL names a database that can hold a ledger."""

    def place(self, url: URL) -> str:
        """Say where the database is, for messages: a file, or a URL without its password."""

    def file(self, url: URL) -> Path | None:
        """Find the database's file, where it is one on this machine."""

    def engine(self, url: URL, *, writable: bool, create: bool) -> Engine:
        """Make the engine. `create` makes an empty database where that is a matter of a file."""

    def begin(self, connection: Connection, purpose: Purpose) -> None:
        """Begin a transaction: one snapshot to read from, or the only writer, or one that changes definitions."""

    def after_erasing(self, connection: Connection) -> None:
        """Reach copies of deleted rows in the database's own files, as far as that is possible."""

    def stream(self, connection: Connection, sql: str, parameters: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
        """Stream the rows of a query with `?` for parameters, in bounded memory and with the driver's own types."""

    def run(self, connection: Connection, statements: Sequence[Statement]) -> Rows:
        """Run statements in order, in one round trip, past SQLAlchemy; returns the rows of the last one.

        None of them may depend on what another one returns; the first that fails raises the driver's error.
        """

    def insert(self, rows: Sequence[tuple[Any, ...]]) -> list[Statement]:
        """Write what adds rows (idx, event_id, leaf, leaf_hash, type, ts, subject) to the table `entry`, in order."""

    def tables(self, connection: Connection) -> set[str]:
        """Name the tables that there are."""

    def definitions(self, connection: Connection) -> Iterator[tuple[str, str, str, str]]:
        """List everything that is defined, as (kind, name, table, definition)."""

    def storage_problems(self, connection: Connection) -> Iterator[str]:
        """Say what the database's own check finds wrong with its pages and indexes."""

    def findings(self, connection: Connection) -> Iterator[Finding]:
        """Say how the database is set up, for people."""

    def role(self, connection: Connection) -> str:
        """Name of the role that the connection has; empty where there are no roles."""

    def explain(self, error: BaseException | None, where: str) -> ApplianceError:
        """Say what an error of the driver means."""


def parse_url(url: str) -> tuple[URL, Dialect]:
    """Parse the URL of a database and find its dialect. Raises `ConfigInvalid` for a URL that no dialect takes."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise ConfigInvalid("the ledger's database URL is malformed") from None
    module = _MODULES.get(parsed.drivername)
    if module is None:
        raise ConfigInvalid(
            "the ledger's database must be an SQLite file or a PostgreSQL database",
            hint="sqlite:////absolute/path or postgresql+psycopg://ROLE@/DATABASE?host=/run/postgresql",
        )
    dialect = _load(module)
    dialect.check_url(parsed)
    return parsed, dialect


def of(connection: Connection) -> Dialect:
    """Find the dialect of a connection."""
    return _load(_BACKENDS[connection.dialect.name])


def _load(module: str) -> Dialect:
    return cast(Dialect, import_module(module))  # psycopg takes a while to import, and most homes do without
