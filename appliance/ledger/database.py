"""The database of a ledger: connections, transactions, durability; what is particular to one kind is its dialect's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, event
from sqlalchemy.exc import DBAPIError

from appliance.errors import IntegrityError
from appliance.ledger import dialect
from appliance.ledger.dialect import Finding, Purpose, Roles


class Database:
    """The database of one ledger.

    Args:
      url: an SQLAlchemy URL; `sqlite:////absolute/path` or `postgresql+psycopg://ROLE@HOST/DATABASE`.
      writable: False opens it for reading only.
      create: make the file (mode 0600) where the database is a file and there is none.

    Attributes:
      where: the database for messages, without a password.
      file: the database's file, where it is one on this machine.
    """

    def __init__(self, url: str, *, writable: bool, create: bool = False) -> None:
        parsed, self._dialect = dialect.parse_url(url)
        self.where: str = self._dialect.place(parsed)
        self.file: Path | None = self._dialect.file(parsed)
        self._engine = self._dialect.engine(parsed, writable=writable, create=create)
        event.listen(self._engine, "begin", _begin)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Open one snapshot to read from."""
        with self._transaction("read") as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Open a transaction, the only writer: durable when the block is left, rolled back when it raises."""
        with self._transaction("write") as connection:
            yield connection

    @contextmanager
    def define(self) -> Iterator[Connection]:
        """Open a transaction that may change definitions too."""
        with self._transaction("define") as connection:
            yield connection

    @contextmanager
    def erasing(self) -> Iterator[Connection]:
        """Open a transaction of whoever may delete bodies, and nothing else; it does not queue with the writers."""
        with self._transaction("erase") as connection:
            yield connection
        with self._translated(), self._engine.connect() as connection:
            self._dialect.after_erasing(connection)

    def role(self) -> str:
        """Name of the role that this database is used as; empty where there are no roles."""
        with self.read() as connection:
            return self._dialect.role(connection)

    def findings(self) -> list[Finding]:
        """Say how the database is set up, for people."""
        with self.read() as connection:
            return list(self._dialect.findings(connection))

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    @contextmanager
    def _transaction(self, purpose: Purpose) -> Iterator[Connection]:
        with self._translated(), self._engine.connect() as connection:
            connection.execution_options(ledger_purpose=purpose)
            with connection.begin():
                yield connection

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            raise self._dialect.explain(error.orig, self.where) from None
        except self._dialect.DRIVER_ERRORS as error:
            raise self._dialect.explain(error, self.where) from None
        except UnicodeDecodeError:  # the driver fails so on an error message that quotes a damaged definition
            raise IntegrityError("the ledger's database is damaged", where=self.where) from None


def place_of(url: str) -> str:
    """Say where a database is, without a password. Raises `ConfigInvalid` for a URL that cannot be used."""
    parsed, kind = dialect.parse_url(url)
    return kind.place(parsed)


def roles(application_url: str, eraser_url: str = "") -> Roles:
    """Find the roles behind the URLs of the application and of whoever erases bodies; proves that both can connect."""
    names = []
    for url in (application_url, eraser_url):
        names.append("")
        if url:
            database = Database(url, writable=False)
            try:
                names[-1] = database.role()
            finally:
                database.close()
    return Roles(*names)


def stream(connection: Connection, sql: str, *parameters: Any) -> Iterator[tuple[Any, ...]]:
    """Stream the rows of a query in bounded memory, as the driver has them: verification compares their very types."""
    return dialect.of(connection).stream(connection, sql, parameters)


def _begin(connection: Connection) -> None:
    dialect.of(connection).begin(connection, connection.get_execution_options().get("ledger_purpose", "read"))
