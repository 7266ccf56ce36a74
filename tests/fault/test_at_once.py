"""Two commands at once: whoever comes second is refused, and takes nothing from the first."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from threading import Timer
from typing import IO

import pytest

from appliance.errors import Busy, UsageError
from appliance.files import lock, staged_directory
from appliance.flows import init as flow
from appliance.flows import key, launch, passing
from appliance.flows import policy as policies
from appliance.flows.home import Home, Operator
from appliance.flows.run import abort
from appliance.jobs.rundir import RunDir
from appliance.store import keyslots
from appliance.store.charge import Charge
from appliance.store.client import AgentStatus
from appliance.store.keys import RootKey
from tests.builders import bare_home

PASSPHRASE = b"correct horse battery staple"
ANN = Operator(name="ann")


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a guess of the passphrase cost nothing."""
    least = keyslots.Argon2Cost(memory_kib=8, iterations=1, lanes=1)
    monkeypatch.setattr(keyslots, "Argon2Cost", lambda: least)


def make(root: Path, places: flow.Places) -> Home:
    return flow.init(root, policies.load("demo"), bytearray(PASSPHRASE), ANN, places).home


@pytest.mark.parametrize("renamed", [False, True])
def test_an_init_that_is_interrupted_removes_what_lies_outside_unless_the_home_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renamed: bool
) -> None:
    places = flow.Places(anchor_dir=tmp_path / "volume", epoch_keys=tmp_path / "device", origin="hospital.example/log")

    @contextmanager
    def interrupted(root: Path) -> Iterator[Path]:
        with staged_directory(root) as partial:
            yield partial
            if not renamed:
                raise KeyboardInterrupt
        raise KeyboardInterrupt

    monkeypatch.setattr(flow, "staged_directory", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "home", places)
    assert (tmp_path / "home" / "home.json").exists() is renamed
    assert (tmp_path / "device" / "epoch-1.json").exists() is renamed
    assert any(path.is_file() for path in (tmp_path / "volume").rglob("*")) is renamed


@pytest.mark.parametrize("second", ["home", "other"])
def test_an_init_that_comes_second_leaves_the_first_its_keys_and_anchor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: str
) -> None:
    places = flow.Places(anchor_dir=tmp_path / "volume", epoch_keys=tmp_path / "device", origin="hospital.example/log")
    made = []

    def begin(root: Path) -> object:
        """Let another `init` be faster, once this one has seen that nothing is there."""
        monkeypatch.setattr(flow, "staged_directory", staged_directory)
        made.append(make(tmp_path / "home", places))
        return staged_directory(root)

    monkeypatch.setattr(flow, "staged_directory", begin)
    with pytest.raises(UsageError):
        make(tmp_path / second, places)
    (home,) = made
    key.unlock(home, bytearray(PASSPHRASE), ANN, ttl_s=60)
    try:
        home.agent().ingest_keys("ds_1")
    finally:
        assert key.lock(home, ANN)


def test_an_init_that_fails_leaves_nothing_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = flow.Places(anchor_dir=tmp_path / "volume", epoch_keys=tmp_path / "device")
    monkeypatch.setattr(flow, "to_json", lambda value: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make(tmp_path / "home", places)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


# --- supervisors, and who looks at them -----------------------------------------------------------------------------


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    path = tmp_path / "runs" / "run_1"
    path.mkdir(parents=True)
    return RunDir(path)


def after(seconds: float, what: Callable[[], object]) -> Timer:
    timer = Timer(seconds, what)
    timer.start()
    return timer


def test_who_only_looks_keeps_nobody_from_supervising(run_dir: RunDir) -> None:
    looks = lock(run_dir.supervisor_lock, shared=True)
    after(0.5, lambda: os.close(looks))
    with launch.supervising(run_dir):
        assert launch.supervisor_of(run_dir) == os.getpid()
        with pytest.raises(Busy), launch.supervising(run_dir):
            pytest.fail("two supervise")
    assert launch.supervisor_of(run_dir) is None


def test_a_supervisor_that_has_not_said_who_it_is_is_one(run_dir: RunDir) -> None:
    held = lock(run_dir.supervisor_lock)
    after(0.2, lambda: run_dir.supervisor_lock.write_text("4711\n"))
    assert launch.supervisor_of(run_dir) == 4711
    os.close(held)


def test_to_look_makes_no_file(run_dir: RunDir) -> None:
    assert launch.supervisor_of(run_dir) is None
    launch.wait_for_workers(run_dir)
    assert not list(run_dir.path.iterdir())


def test_a_directory_that_goes_while_others_are_removed_leaves_nothing(
    run_dir: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = bare_home(run_dir.path.parent.parent)
    gone = home.runs / "import_1"
    monkeypatch.setattr(passing, "_find", lambda home, kinds: [gone])
    assert passing.find(home) == []
    passing.remove(home, "import")
    assert not os.path.lexists(gone)


def test_a_supervisor_that_has_just_ended_is_no_obstacle_to_aborting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    pids = [ended.pid, None]
    monkeypatch.setattr(launch, "supervisor_of", lambda run_dir: pids.pop(0))
    abort.end_supervisor(RunDir(tmp_path), wait_s=5)
    assert not pids


def begin_supervising(run_dir: RunDir) -> subprocess.Popen[bytes]:
    hold = (
        "import fcntl, os, sys, time; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX);"
        "print(os.getpid(), file=file, flush=True); print(flush=True); time.sleep(60)"
    )
    words = [sys.executable, "-c", hold, str(run_dir.supervisor_lock)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    return process


def test_who_aborts_interrupts_the_next_supervisor_too(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who waits to resume the run may be faster than who aborts it."""
    supervisors, real = [begin_supervising(run_dir)], launch.supervising

    def supervise(run_dir: RunDir) -> AbstractContextManager[None]:
        monkeypatch.undo()
        supervisors.append(begin_supervising(run_dir))
        return real(run_dir)

    monkeypatch.setattr(launch, "supervising", supervise)
    with ExitStack() as supervised:
        abort._take_over(run_dir, 10, supervised)
        assert launch.supervisor_of(run_dir) == os.getpid()
    assert [process.wait() for process in supervisors] == [-signal.SIGINT, -signal.SIGINT]


# --- the key agent --------------------------------------------------------------------------------------------------


def test_who_unlocks_waits_for_an_agent_that_is_being_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would end that agent, and who started it would say that it does not start."""
    home, real = make(tmp_path / "home", flow.Places()), key.send

    def unlock() -> AgentStatus:
        return key.unlock(home, bytearray(PASSPHRASE), ANN, ttl_s=60)

    with ThreadPoolExecutor() as pool:
        others: list[Future[AgentStatus]] = []

        def send(pipe: IO[bytes], root: RootKey, charge: Charge) -> None:
            monkeypatch.undo()
            real(pipe, root, charge)
            pipe.close()
            while home.agent().status().state == "sealed":
                time.sleep(0.01)
            others.append(pool.submit(unlock))
            wait(others, 1)

        monkeypatch.setattr(key, "send", send)
        assert unlock().state == "unsealed"
        assert others[0].result().state == "unsealed"
    assert key.lock(home, ANN)
