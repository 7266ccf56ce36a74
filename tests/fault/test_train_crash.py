"""kill -9 during training: every attempt that was made is charged, and a damaged record of them is charged in full.

Whoever kills and cuts the journal hides no more than the ledger has set aside, and that is charged.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from appliance.flows.catalog import find_run, plan_of
from appliance.flows.desk import Desk
from appliance.flows.home import Home, Operator
from appliance.flows.run import selftest
from appliance.flows.run.following import window_of
from appliance.flows.run.hardware import engine_options
from appliance.flows.run.plan import load
from appliance.flows.run.reserve import reserve
from appliance.flows.run.starting import mark_started
from appliance.privacy import journal
from tests.e2e.conftest import Appliance, copy_home, in_place, keep, rewrite, unlocked

STEPS, SPARE = 4000, 30  # of the interrupted home: far more steps than can be made before its worker is stopped
RECORDED = window_of(STEPS + SPARE) // 2  # the attempt at which the ledger first records them
STEPS_PER_KILL = 60
FEW, FEW_SPARE = 100, 60  # of the hidden run
WINDOW = window_of(FEW + FEW_SPARE)  # attempts that are permitted beyond those recorded


def write_run_file(small_run: Path, path: Path, steps: int, spare: int) -> Path:
    """A run file of many short steps, with attempts to spare for those that a kill loses."""
    return rewrite(small_run, path, steps=steps, spare_steps=spare, expected_batch_size=12, max_tokens=32, rank=1)


def until(condition: Callable[[], Any], what: str, looks: int = 60_000) -> None:
    """Wait for something, ten minutes and more. Looks are counted and not seconds: this process may be stopped too."""
    for _ in range(looks):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail(f"waited in vain until {what}")


def gone(pid: int) -> bool:
    """Whether a process has ended; one that its parent has not collected yet has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def worker_of(supervisor: int, runs: Path) -> tuple[int, str] | None:
    """Process id and run of the training worker that this supervisor has now; its self-test is another process."""
    try:
        children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
        words = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in children}
    except (FileNotFoundError, ProcessLookupError):
        return None
    for pid, line in words.items():
        directory = Path(os.fsdecode(line[-2])) if b"appliance.worker" in line else Path()
        if directory.parent == runs and directory.name.startswith("run_"):
            return pid, directory.name
    return None


@dataclass(frozen=True)
class Interrupted:
    """A sealed home and the directory of the interrupted run in it."""

    appliance: Appliance
    directory: Path

    @property
    def run(self) -> str:
        return self.directory.name

    def attempts(self) -> int:
        state = journal.read(self.directory / "journal.jsonl", self.run)
        assert state is not None
        return state.attempts


class Supervised:
    """One life of the run: a supervisor on the command line, its worker, and the run's journal."""

    def __init__(self, appliance: Appliance, *words: str) -> None:
        self.appliance = appliance
        self.process: subprocess.Popen[str] = appliance.popen("--json", *words)
        self.run = words[-1] if words[1] == "resume" else ""

    @property
    def directory(self) -> Path:
        return self.appliance.home / "runs" / self.run

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def attempts(self) -> int:
        state = journal.read(self.directory / "journal.jsonl", self.run)
        return state.attempts if state else 0

    def find_worker(self) -> int | None:
        """Wait for the worker and return its process id; None if the supervisor ended before one was seen."""
        found: list[tuple[int, str]] = []

        def seen() -> bool:
            worker = worker_of(self.process.pid, self.appliance.home / "runs")
            found.extend([worker] if worker else [])
            return bool(worker) or self.ended

        until(seen, "there is a worker")
        if not found:
            return None
        pid, self.run = found[0]
        return pid

    def kill(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def close(self) -> tuple[int, str]:
        _, err = self.process.communicate()
        assert "Traceback" not in err, err
        return self.process.returncode, err


def interrupt_once_recorded(appliance: Appliance, run_file: Path) -> None:
    """Start a run and kill its worker after the ledger has recorded its journal."""
    life = Supervised(appliance, "train", "start", str(run_file))
    try:
        worker = life.find_worker()
        assert worker is not None
        # With one attempt more in the journal, the one that is recorded has been asked for.
        until(lambda: life.ended or life.attempts() > RECORDED, "the worker has made some attempts")
        os.kill(worker, signal.SIGSTOP)  # nothing goes on while the ledger is looked at
        until(lambda: life.ended or recorded(appliance) >= RECORDED, "the ledger recorded the journal")
        life.kill(worker)
        status, err = life.close()
        assert status == 130, err
        assert "the reservation stands" in err
    finally:
        life.kill(life.process.pid)  # its worker dies with it


def reserve_and_test(appliance: Appliance, run_file: Path) -> None:
    """What `train start` does before a worker may have the key: reserve the run and see its engine pass its test."""
    home = Home.open(appliance.home)
    run = load(run_file)
    row = reserve(
        home, run, engine_options("cpu", "auto", physical_tokens=None, threads=0, choice=run.engine), Operator()
    )
    with Desk.open(home, Operator()) as desk:
        assert selftest.ensure(desk, row).passed


@pytest.fixture(scope="session")
def interrupted_template(
    built_once: Callable[[str, Callable[[Path], None]], Path], template: Path, small_run: Path
) -> Path:
    """Two homes with one run of many steps.

    In `tested` it is reserved and its self-test has passed, and in `interrupted` its worker was killed after the ledger
    had recorded its journal at least once.
    """

    def build(directory: Path) -> None:
        run_file = write_run_file(small_run, directory / "run.yaml", STEPS, SPARE)
        appliance = copy_home(template, directory)
        with unlocked(appliance):
            reserve_and_test(appliance, run_file)
        keep(directory, "tested")
        with unlocked(appliance):
            interrupt_once_recorded(appliance, run_file)
        keep(directory, "interrupted")

    return built_once("interrupted-home", build)


def one_run(appliance: Appliance) -> Interrupted:
    (journal_path,) = (appliance.home / "runs").glob("run_*/journal.jsonl")
    return Interrupted(appliance, journal_path.parent)


@pytest.fixture
def interrupted(interrupted_template: Path, tmp_path: Path) -> Interrupted:
    """A copy of the home with the interrupted run, sealed."""
    return one_run(copy_home(interrupted_template / "interrupted", tmp_path))


def facts(appliance: Appliance, kind: str) -> list[dict[str, Any]]:
    return [entry["leaf"]["facts"] for entry in appliance.json("ledger", "log", "--type", kind)["entries"]]


def recorded(appliance: Appliance) -> int:
    """Attempts up to which the ledger has recorded the journal of its one run."""
    with contextlib.closing(sqlite3.connect(f"file:{appliance.home / 'ledger.db'}?mode=ro", uri=True)) as database:
        ((attempts,),) = database.execute("SELECT recorded_attempts FROM run")
    return int(attempts)


def row_of(appliance: Appliance, run: str) -> dict[str, Any]:
    return next(row for row in appliance.json("train", "status")["runs"] if row["run"] == run)


@pytest.mark.timeout(7200)  # the full count on a busy machine
def test_killed_at_random_a_run_is_charged_for_every_attempt(
    appliance: Appliance, small_run: Path, tmp_path: Path, stress_count: Callable[[int, int], int]
) -> None:
    kills = stress_count(4, 100)
    steps, spare = STEPS_PER_KILL * kills, 2 * kills + 10
    chooser = random.Random(17)
    victims = ["supervisor", "worker"] * (kills // 2 + 1)
    chooser.shuffle(victims)
    made = resumed = 0
    run_file = write_run_file(small_run, tmp_path / "run.yaml", steps, spare)
    life = Supervised(appliance, "train", "start", str(run_file))
    for whom in victims[:kills]:
        worker = life.find_worker()
        if worker is None:  # every attempt was used up, or every step made
            break
        wait_for_the_moment(life, made, chooser)
        life.kill(life.process.pid if whom == "supervisor" else worker)
        until(lambda: gone(life.process.pid) and gone(worker), "both processes are gone")  # noqa: B023
        status, err = life.close()
        row = row_of(appliance, life.run)
        if row["state"] == "finished":
            break
        assert status == (-signal.SIGKILL if whom == "supervisor" else 130), err
        assert whom == "supervisor" or "the reservation stands" in err
        state = journal.read(life.directory / "journal.jsonl", life.run)
        assert state is not None
        assert state.intact
        assert state.sampled >= made, "an attempt was forgotten"
        made = state.sampled
        assert row["charged_attempts"] is None
        life, resumed = Supervised(appliance, "train", "resume", life.run), resumed + 1
    status, err = life.close()
    assert status == 0, err

    row = row_of(appliance, life.run)
    state = journal.read(life.directory / "journal.jsonl", life.run)
    assert state is not None
    assert row["state"] == "finished"
    assert row["reserved_attempts"] == steps + spare
    assert resumed > 0
    assert state.sampled <= row["charged_attempts"] <= row["reserved_attempts"]
    assert row["charged_attempts"] >= row["steps"] > 0
    assert len(facts(appliance, "run.started")) == 1
    assert len(facts(appliance, "run.resumed")) == resumed
    (settled,) = facts(appliance, "run.settled")
    assert settled["attempts"] == row["charged_attempts"]
    appliance("ledger", "verify")


def wait_for_the_moment(life: Supervised, made: int, chooser: random.Random) -> None:
    """Now and then some time into the worker's start, else some attempts further, and a random while into the next."""
    if chooser.random() < 0.25:
        time.sleep(chooser.uniform(0, 2))
        return
    target = made + chooser.randint(1, STEPS_PER_KILL // 3)
    until(lambda: life.ended or life.attempts() >= target, f"attempt {target} is made")
    time.sleep(chooser.uniform(0, 0.05))


def delete(path: Path) -> None:
    path.unlink()


def cut_behind_what_was_recorded(path: Path) -> None:
    """Drop whole lines: what is left is intact, and holds fewer attempts than the ledger recorded."""
    lines = path.read_bytes().splitlines(keepends=True)
    kept: list[bytes] = []
    for line in lines:
        if json.loads(line)["entry"].get("n") == RECORDED - 1:
            break
        kept.append(line)
    path.write_bytes(b"".join(kept))
    state = journal.read(path, path.parent.name)
    assert state is not None
    assert state.intact
    assert state.attempts < RECORDED


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[random.Random(3).randrange(len(content) // 2)] ^= 0x01
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [delete, cut_behind_what_was_recorded, flip_a_byte])
def test_a_damaged_journal_is_charged_in_full(interrupted: Interrupted, damage: Callable[[Path], None]) -> None:
    damage(interrupted.directory / "journal.jsonl")
    aborted = interrupted.appliance.json("train", "abort", interrupted.run)
    assert aborted["state"] == "aborted"
    assert aborted["charged_attempts"] == aborted["reserved_attempts"] == STEPS + SPARE
    interrupted.appliance("ledger", "verify")


def test_an_undamaged_journal_is_charged_as_it_stands(interrupted: Interrupted) -> None:
    made = interrupted.attempts()
    aborted = interrupted.appliance.json("train", "abort", interrupted.run)
    assert aborted["charged_attempts"] == made < aborted["reserved_attempts"]


def test_an_edited_job_is_not_resumed_and_charged_in_full(interrupted: Interrupted) -> None:
    path = interrupted.directory / "job.json"
    job = json.loads(path.read_bytes())
    job["plan"]["noise_multiplier"] /= 2
    path.write_text(json.dumps(job))
    interrupted.appliance("key", "unlock")
    refused = interrupted.appliance("train", "resume", interrupted.run, expect=8)
    assert "altered" in refused.err
    interrupted.appliance("train", "resume", interrupted.run, expect=2)
    interrupted.appliance("key", "lock")
    row = row_of(interrupted.appliance, interrupted.run)
    assert row["state"] == "failed"
    assert row["charged_attempts"] == row["reserved_attempts"] == STEPS + SPARE
    interrupted.appliance("ledger", "verify")


# --- what is made before the ledger knows of it -----------------------------------------------------------------------


def cut_to_the_first_line(path: Path) -> None:
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    state = journal.read(path, path.parent.name)
    assert state is not None
    assert (state.intact, state.attempts) == (True, 0)


def hide(appliance: Appliance, run_file: Path, window: int) -> Path:
    """Start a run whose supervisor stands still, let the worker go as far as it can, kill both; the run's directory."""
    life = Supervised(appliance, "train", "start", str(run_file))
    try:
        worker = life.find_worker()
        assert worker is not None
        os.kill(life.process.pid, signal.SIGSTOP)
        until(lambda: gone(worker) or life.attempts() > window, "the worker asks for one more than it may make")
        time.sleep(1)
        assert life.attempts() == window + 1  # the last of them is journaled and waits
        assert not gone(worker)
    finally:
        life.kill(life.process.pid)
    until(lambda: gone(worker), "the worker is gone")
    life.process.communicate()
    assert recorded(appliance) == 0
    return life.directory


@pytest.fixture(scope="session")
def hidden_template(built_once: Callable[[str, Callable[[Path], None]], Path], template: Path, small_run: Path) -> Path:
    """In `hidden` a home with a run that was killed after its first attempts, of which the ledger knows nothing."""

    def build(directory: Path) -> None:
        appliance = copy_home(template, directory)
        with unlocked(appliance):
            hide(appliance, write_run_file(small_run, directory / "run.yaml", FEW, FEW_SPARE), WINDOW)
        keep(directory, "hidden")

    return built_once("hidden-home", build)


@pytest.fixture
def hidden(hidden_template: Path, tmp_path: Path) -> Interrupted:
    """A copy of that home, sealed."""
    return one_run(copy_home(hidden_template / "hidden", tmp_path))


def test_a_journal_cut_to_its_first_line_and_aborted_is_charged_what_was_made(hidden: Interrupted) -> None:
    """The former rule charged 0 of them."""
    cut_to_the_first_line(hidden.directory / "journal.jsonl")
    shutil.rmtree(hidden.directory / "snapshots")
    aborted = hidden.appliance.json("train", "abort", hidden.run)
    assert (aborted["charged_attempts"], aborted["reserved_attempts"]) == (WINDOW, FEW + FEW_SPARE)
    hidden.appliance("ledger", "verify")


@pytest.mark.parametrize("proof", ["release", "snapshot", "adapter"])
def test_a_journal_that_other_files_of_the_run_belie_is_charged_in_full(hidden: Interrupted, proof: str) -> None:
    cut_to_the_first_line(hidden.directory / "journal.jsonl")
    snapshots = hidden.directory / "snapshots"
    releases = sorted(snapshots.iterdir())
    assert [path.name for path in releases] == [f"release-{step:06d}" for step in range(1, WINDOW + 1)]
    for release in releases[1:] if proof == "release" else releases:  # the first alone is proof enough
        release.unlink()
    if proof == "snapshot":
        (snapshots / "snapshot").touch()
    if proof == "adapter":
        (hidden.directory / "adapter").mkdir()
    aborted = hidden.appliance.json("train", "abort", hidden.run)
    assert aborted["charged_attempts"] == aborted["reserved_attempts"] == FEW + FEW_SPARE


def test_a_journal_cut_to_its_first_line_is_resumed_with_what_was_made_counted(hidden_template: Path) -> None:
    with in_place(hidden_template, "hidden") as appliance:
        directory = one_run(appliance).directory
        cut_to_the_first_line(directory / "journal.jsonl")
        shutil.rmtree(directory / "snapshots")
        done = appliance.json("train", "resume", directory.name)
        assert (done["state"], done["charged_attempts"]) == ("finished", WINDOW + FEW)
        assert [f["attempts_left"] for f in facts(appliance, "run.resumed")] == [FEW + FEW_SPARE - WINDOW]
        appliance("ledger", "verify")


def test_forty_five_resumes_from_a_journal_that_was_cut_back_are_charged(hidden: Interrupted) -> None:
    """The former rule charged 0 for them. The worker is played here: it does what it may do and leaves nothing."""
    assert WINDOW == 3
    appliance, directory = hidden.appliance, hidden.directory
    with unlocked(appliance):
        made, chooser, kept = WINDOW, random.Random(7), b""
        for _ in range(45):
            shutil.rmtree(directory / "snapshots", ignore_errors=True)
            kept = kept or (directory / "journal.jsonl").read_bytes().splitlines(keepends=True)[0]
            (directory / "journal.jsonl").write_bytes(kept)
            with Desk.open(Home.open(appliance.home), Operator()) as desk:
                row, _ = mark_started(desk, find_run(desk.ledger, directory.name), 1, None)
            lines = (directory / "journal.jsonl").read_bytes()
            state = journal.read(directory / "journal.jsonl", row.id)
            assert state is not None
            assert state.attempts == row.recorded_attempts >= made
            mine = chooser.randint(0, WINDOW)
            with journal.Journal.open(directory / "journal.jsonl", row.id, state.plan_sha256) as played:
                for _ in range(mine):
                    played.attempt(plan_of(row).sample_rate, plan_of(row).noise_multiplier)
            made, kept = made + mine, lines
        (directory / "journal.jsonl").write_bytes(kept)
        aborted = appliance.json("train", "abort", directory.name)
    assert made > 45
    assert made <= aborted["charged_attempts"] == 46 * WINDOW < aborted["reserved_attempts"]
    appliance("ledger", "verify")


@pytest.mark.parametrize("worker_lives", [True, False], ids=["while-it-trains", "once-it-was-killed"])
def test_a_journal_cut_under_its_supervisors_eyes_is_charged_in_full(
    interrupted_template: Path, worker_lives: bool
) -> None:
    with in_place(interrupted_template, "tested") as appliance:
        life = Supervised(appliance, "train", "start", str(interrupted_template / "run.yaml"))
        try:
            worker = life.find_worker()
            assert worker is not None
            until(lambda: life.ended or life.attempts() >= RECORDED // 2, "the worker has made some attempts")
            os.kill(life.process.pid, signal.SIGSTOP)
            os.kill(worker, signal.SIGSTOP)
            cut_to_the_first_line(life.directory / "journal.jsonl")
            os.kill(worker, signal.SIGCONT if worker_lives else signal.SIGKILL)
            os.kill(life.process.pid, signal.SIGCONT)
            status, err = life.close()
            assert status == (8 if worker_lives else 130), err
        finally:
            life.kill(life.process.pid)
        if not worker_lives:
            appliance("train", "abort", life.run)
        row = row_of(appliance, life.run)
        assert row["charged_attempts"] == row["reserved_attempts"] == STEPS + SPARE
