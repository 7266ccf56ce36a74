"""The two kinds of database a ledger lives in, as tests reach behind it: raw SQL, copies, loss."""

from __future__ import annotations

import shutil
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psycopg

from tests import postgres
from tests.postgres import Server

KINDS = ("sqlite", "postgres")
RawError = (sqlite3.Error, psycopg.Error)


class Behind(Protocol):
    """A ledger's database without the ledger."""

    kind: str
    urls: dict[str, str]

    def execute(self, *statements: str) -> None:
        """Run SQL as whoever can do most, each statement by itself."""

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Rows of a query."""

    def guards(self) -> tuple[list[str], list[str]]:
        """SQL that puts every guard aside, and that puts it back."""

    def copy(self) -> Behind:
        """A copy as of now, which `restore` takes."""

    def restore(self, copy: Behind) -> None:
        """Be what the copy was."""

    def lose(self) -> None:
        """Remove the database."""


@dataclass
class SQLiteFile:
    """A file."""

    path: Path
    kind: str = "sqlite"

    @property
    def urls(self) -> dict[str, str]:
        return {"url": f"sqlite:///{self.path}"}

    def connect(self) -> sqlite3.Connection:
        raw = sqlite3.connect(self.path, isolation_level=None)
        raw.execute("PRAGMA synchronous=OFF")
        return raw

    def execute(self, *statements: str) -> None:
        raw = self.connect()
        try:
            for statement in statements:
                raw.execute(statement)
        finally:
            raw.close()

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        raw = self.connect()
        try:
            return raw.execute(query).fetchall()
        finally:
            raw.close()

    def guards(self) -> tuple[list[str], list[str]]:
        found = self.rows("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
        return [f"DROP TRIGGER {name}" for name, _ in found], [sql for _, sql in found]

    def copy(self) -> SQLiteFile:
        self.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return SQLiteFile(Path(shutil.copy(self.path, self.path.with_suffix(".copy"))))

    def restore(self, copy: Behind) -> None:
        assert isinstance(copy, SQLiteFile)
        for leftover in self.path.parent.glob(f"{self.path.name}-*"):
            leftover.unlink()
        shutil.copy(copy.path, self.path)

    def lose(self) -> None:
        self.path.unlink()


@dataclass
class PostgresDatabase:
    """A database on the tests' own server."""

    server: Server
    name: str
    kind: str = "postgres"

    @property
    def urls(self) -> dict[str, str]:
        roles = {"url": postgres.APPLICATION, "owner_url": postgres.OWNER, "eraser_url": postgres.ERASER}
        return {name: self.server.url(self.name, role) for name, role in roles.items()}

    def execute(self, *statements: str) -> None:
        with self.server.connect(self.name) as raw:
            for statement in statements:
                raw.execute(statement.encode())

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with self.server.connect(self.name) as raw:
            return raw.execute(query.encode()).fetchall()

    def guards(self) -> tuple[list[str], list[str]]:
        query = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"
        tables = [name for (name,) in self.rows(query) if name != "alembic_version"]
        put_back = [f"ALTER TABLE {name} {verb} ALL" for name in tables for verb in ("ENABLE TRIGGER",)]
        always = self.rows("SELECT tgrelid::regclass, tgname FROM pg_trigger WHERE NOT tgisinternal")
        put_back += [f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {name}" for table, name in always]
        return [f"ALTER TABLE {name} DISABLE TRIGGER ALL" for name in tables], put_back

    def copy(self) -> PostgresDatabase:
        copied = PostgresDatabase(self.server, f"{self.name}_copy")
        self._become(copied.name, self.name)
        return copied

    def restore(self, copy: Behind) -> None:
        assert isinstance(copy, PostgresDatabase)
        self._become(self.name, copy.name)

    def lose(self) -> None:
        self.server.drop(self.name)
        self.server.drop(f"{self.name}_copy")

    def _become(self, name: str, template: str) -> None:
        end = f"SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE datname = '{template}'"
        with self.server.connect("postgres") as raw:
            raw.execute(end.encode())
        self.server.drop(name)
        self.server.create(name, template)


def attack(database: Behind, *statements: str) -> None:
    """Run SQL with every guard put aside and back again."""
    aside, back = database.guards()
    database.execute(*aside, *statements, *back)
