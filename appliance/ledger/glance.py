"""A glance at the catalog for the shell's completion: a few names, fast, and nothing where anything is in the way.

Nothing is proved, so nothing may be decided by it. It reads SQLite alone, and loads no SQLAlchemy.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

_WAIT_S = 0.05
_MOST = 200
_NAMES = {
    "dataset": "SELECT name, purpose || ', ' || state FROM dataset",
    "run": "SELECT id, name || ', ' || state FROM run",
    "model": "SELECT id, architecture FROM model",
}


def glance(database: Path, table: str) -> list[tuple[str, str]]:
    """Read names and what they are from a table; empty if the database cannot be read at once."""
    try:
        place = f"file:{quote(str(database))}?mode=ro"
        with closing(sqlite3.connect(place, uri=True, timeout=_WAIT_S)) as connection:
            rows = connection.execute(f"{_NAMES[table]} ORDER BY 1 LIMIT {_MOST}").fetchall()
    except (sqlite3.Error, OSError):
        return []
    return [(name, what) for name, what in rows if type(name) is str and type(what) is str]
