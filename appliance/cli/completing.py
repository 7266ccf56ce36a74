"""What the shell's completion offers for a dataset, run, model or policy. On any problem it offers nothing."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import typer

from appliance.ledger.glance import glance
from appliance.names import visible
from appliance.policy import shipped

Offer = list[tuple[str, str]]
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # no name of an older ledger plays tricks on a shell


def datasets(context: typer.Context, incomplete: str) -> Offer:
    """Offer the datasets."""
    return _choose(_glance(context, "dataset"), incomplete)


def runs(context: typer.Context, incomplete: str) -> Offer:
    """Offer the runs."""
    return _choose(_glance(context, "run"), incomplete)


def open_runs(context: typer.Context, incomplete: str) -> Offer:
    """Offer the runs that can go on."""
    going = (", reserved", ", running")
    return _choose((found for found in _glance(context, "run") if found[1].endswith(going)), incomplete)


def models(context: typer.Context, incomplete: str) -> Offer:
    """Offer the base models."""
    return _choose(_glance(context, "model"), incomplete)


def policies(context: typer.Context, incomplete: str) -> Offer:
    """Offer the shipped policies, and the files that begin like this."""
    folder, _, start = incomplete.rpartition("/")
    found = _quietly(lambda: [(name, "shipped") for name in shipped.names()])
    listed = _quietly(lambda: sorted(path.name for path in Path(folder or ".").iterdir() if path.suffix == ".yaml"))
    prefix = f"{folder}/" if folder else ""
    files = [(f"{prefix}{name}", "file") for name in listed if name.startswith(start) and _WORD.fullmatch(name)]
    return [*_choose(found, incomplete), *files]


def _choose(found: Iterable[tuple[str, str]], incomplete: str) -> Offer:
    return [(name, visible(what)) for name, what in found if name.startswith(incomplete) and _WORD.fullmatch(name)]


def _glance(context: typer.Context, table: str) -> Offer:
    return _quietly(lambda: glance(_database(context), table))


def _database(context: typer.Context) -> Path:
    """Find the database of the home that is meant. Raises `ValueError` if it is not SQLite's."""
    named = context.params.get("home_dir") or context.find_root().params.get("home_dir")
    root = Path(named or os.environ.get("APPLIANCE_HOME") or Path.home() / ".appliance")
    url = str(json.loads((root / "home.json").read_bytes()).get("database_url") or "")
    if url and not url.startswith("sqlite:///"):
        raise ValueError
    return Path(url.removeprefix("sqlite:///")) if url else root / "ledger.db"


def _quietly(find: Callable[[], list]) -> list:  # type: ignore[type-arg]
    try:
        return find()
    except (OSError, ValueError, AttributeError, RuntimeError):
        return []
