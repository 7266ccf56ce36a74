"""A verb that ended has synced what it leaves: nothing of it is lost when the power fails right after.

Each verb runs under strace with all of its processes. What is on the disk if every write and name that was not synced
is lost must be what is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.conftest import Appliance, plan, write_notes, write_passphrase
from tests.fault.disk import Disk
from tests.fault.test_ledger_disk import traceable
from tests.fault.test_ledger_replay import make
from tests.fault.trace import STRACE, Step, steps

# What is made anew, or emptied before it is of use: shared memory, the write-ahead log, locks.
PASSING = ("-shm", "-wal", ".lock")
COLUMNS = ("--prompt", "question", "--completion", "answer")


@dataclass
class Traced:
    """Verbs of a home in a directory, and what the disk holds of it if the power fails after the last one."""

    directory: Path
    trace: Path

    def did(self, *words: str) -> tuple[Disk, list[Step]]:
        disk = Disk(self.directory)
        home = self.directory / "home"
        Appliance(home, prefix=(*STRACE, "-o", str(self.trace)))(*words)
        return disk, list(steps(self.trace.read_text(), self.directory, Path.cwd()))

    def lost(self, disk: Disk, done: Iterable[Step]) -> list[str]:
        """Names of what would be lost or changed."""
        for step in done:
            if step.kind != "say":
                disk.apply(step)
        state = disk.state(lambda: False)
        found = [path for path in self.directory.rglob("*") if path.is_dir() or path.is_file()]
        there = {path.relative_to(self.directory): None if path.is_dir() else path.read_bytes() for path in found}
        return [
            str(path)
            for path, data in there.items()
            if not path.name.endswith(PASSING) and (path not in state or state[path] != data)
        ]


@pytest.fixture
def traced(tmp_path: Path) -> Traced:
    traceable()
    directory = tmp_path / "disk"
    directory.mkdir()
    write_passphrase(directory / "passphrase.txt")
    write_notes(directory / "notes.csv")
    return Traced(directory, tmp_path / "trace")


@pytest.mark.parametrize("outside", [False, True])
def test_a_new_home_is_there(traced: Traced, outside: bool) -> None:
    other = traced.directory / "outside"
    places = ("--anchor", str(other / "anchor"), "--epoch-keys", str(other / "keys")) if outside else ()
    assert traced.lost(*traced.did("init", *places)) == []


def test_what_a_verb_made_is_there(
    traced: Traced, tiny_model_dir: Path, stress_count: Callable[[int, int], int]
) -> None:
    """In short one verb; in full an administrator's day."""
    appliance = Appliance(traced.directory / "home")
    appliance("init", "--policy", "default")
    if stress_count(0, 1):
        whole_day(traced, appliance, tiny_model_dir)
    disk, done = traced.did("key", "rotate", "--ledger")
    assert traced.lost(disk, done) == []
    again = traced.directory.with_name("again")
    make(again, disk.state(lambda: False))
    (again / "home").chmod(0o700)
    assert Appliance(again / "home").json("ledger", "verify")["verdict"] == "intact"


def whole_day(traced: Traced, appliance: Appliance, tiny_model_dir: Path) -> None:
    appliance("key", "unlock")
    run_file, report, bundle = (str(traced.directory / name) for name in ("run.yaml", "report", "bundle"))
    notes = str(traced.directory / "notes.csv")
    try:
        for verb in (
            ("watermark", "keygen"),
            ("model", "import", str(tiny_model_dir), "--name", "tiny"),
            ("data", "ingest", notes, "--name", "notes", "--units", "600", *COLUMNS),
        ):
            assert traced.lost(*traced.did(*verb)) == [], verb
        plan(appliance, Path(run_file))
        assert traced.lost(*traced.did("train", "start", run_file)) == []
        run = next((appliance.home / "runs").glob("run_*")).name
        for verb in (
            ("watermark", "embed", run),
            ("report", "build", run, "--out", report),
            ("export", "bundle", run, "--out", bundle, "--recipient", "auditor"),
            ("ledger", "export", str(traced.directory / "exported")),
        ):
            assert traced.lost(*traced.did(*verb)) == [], verb
    finally:
        appliance("key", "lock", expect=None)


def test_what_was_not_synced_is_noticed(traced: Traced) -> None:
    disk, done = traced.did("init")
    lost = traced.lost(disk, [step for step in done if not step.kind.startswith("sync")])
    assert {"home", "home/ledger.db", "home/anchor/anchor"} <= set(lost)
