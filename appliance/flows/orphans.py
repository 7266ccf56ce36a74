"""Orphans: sealed objects and base models that no row of the catalog owns.

They get their names before their rows commit, so an ingest or import that fails or is killed in between leaves them.
No row means no wrapped key, so such an object can never be opened; such a model is what anybody can import again.
Whoever writes there keeps the directory `unswept` from the first byte to the row, so what is found here is nobody's.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from appliance.files import locked, sweep, unswept
from appliance.flows.home import Home

_DIGEST = re.compile(r"[0-9a-f]{64}")


@contextmanager
def tidied(home: Home, directory: Path) -> Iterator[None]:
    """Write into the home's objects or models: orphans are removed before, and what the block wrote where it fails.

    Where somebody else is writing there too, this is left to whoever comes next.
    """
    remove(home, directory)
    try:
        with unswept(directory):
            yield
    except BaseException:
        with suppress(Exception):  # the error that counts is the one that is raised; the next one removes them
            remove(home, directory)
        raise


def remove(home: Home, directory: Path) -> None:
    """Remove the orphans of the home's objects or models, and files that are not finished."""
    if directory == home.objects:
        sweep(directory)
    with _alone(directory) as alone:
        for path in _find(home, directory) if alone else ():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def find(home: Home) -> list[Path]:
    """List the orphans of the home; none of a directory that somebody is writing to."""
    found: list[Path] = []
    for directory in (home.objects, home.models):
        with _alone(directory) as alone:
            found += _find(home, directory) if alone else []
    return found


@contextmanager
def _alone(directory: Path) -> Iterator[bool]:
    """Say whether nobody else is writing to a directory, and let nobody begin meanwhile."""
    try:
        with locked(directory, wait=False):
            yield True
    except BlockingIOError:
        yield False


def _find(home: Home, directory: Path) -> list[Path]:
    named = [path for path in sorted(directory.iterdir()) if _DIGEST.fullmatch(path.name)]
    owned = _owned(home) if named else set()
    return [path for path in named if path.name not in owned]


def _owned(home: Home) -> set[str]:
    with home.rows() as rows:
        models = {row.sha256 for row in rows.models.list()}
        return models.union(*((row.object_blake3, row.fingerprints_blake3) for row in rows.datasets.list()))
