"""Run directories of jobs that leave nothing behind: each is gone when its job ends.

A command that is killed cannot clean up; the next one of the same kind removes what it left.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from appliance.files import lock, locked
from appliance.flows.home import Home, new_id
from appliance.jobs.rundir import RunDir

KINDS = ("account", "attention", "benchmark", "chat", "convert", "import", "mark", "selftest", "trial")
"""What the names of such directories begin with."""


@contextmanager
def passing_directory(home: Home, kind: str) -> Iterator[RunDir]:
    """Make a run directory for one job; it goes with its job. `kind` is one of `KINDS`."""
    with locked(home.runs):
        remove(home, kind)
        made = home.run(new_id(kind))
        made.path.mkdir(mode=0o700)
        held = lock(made.path)
    try:
        yield made
    finally:
        shutil.rmtree(made.path, ignore_errors=True)
        os.close(held)


def remove(home: Home, *kinds: str) -> None:
    """Remove the directories of these kinds that nobody works in."""
    for path in _find(home, kinds):
        with suppress(BlockingIOError, FileNotFoundError), locked(path, wait=False, make=False):
            shutil.rmtree(path, ignore_errors=True)


def find(home: Home) -> list[RunDir]:
    """List the directories that killed commands left."""
    left = []
    for path in _find(home, KINDS):
        with suppress(BlockingIOError, FileNotFoundError), locked(path, wait=False, make=False):
            left.append(RunDir(path))
    return left


def _find(home: Home, kinds: Sequence[str]) -> list[Path]:
    return sorted(path for kind in kinds for path in home.runs.glob(f"{kind}_*"))
