"""A run file is trained once: started again it goes on with its run, or is refused, and spends nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e.conftest import Appliance, plan, rewrite, unsealed
from tests.e2e.test_main_job import facts
from tests.fault.test_train_crash import until, worker_of


def reservations(appliance: Appliance) -> int:
    return len(facts(appliance, "run.reserved"))


@pytest.fixture
def finished(finished_home: Path, tmp_path: Path) -> Iterator[Appliance]:
    """A copy of the home in which the run of `run.yaml` has finished, unsealed."""
    with unsealed(finished_home, tmp_path) as made:
        yield made


def test_a_run_that_ended_is_not_trained_again_unless_that_is_said(finished: Appliance) -> None:
    run_file = finished.home.with_name("run.yaml")
    (first,) = finished.json("train", "status")["runs"]
    spent = finished.json("budget", "show")
    refused = finished("train", "start", str(run_file), expect=2)
    assert f"{first['run']}) is finished" in refused.err
    assert "--again" in refused.err
    assert finished.json("budget", "show") == spent
    assert finished("train", "plan", "notes", "tiny", "--epsilon", "1", "--name", "run", expect=2)
    second = finished.json("train", "start", str(run_file), "--again")
    assert (first["name"], second["name"]) == ("run", "run-2")
    assert second["state"] == "finished"
    assert reservations(finished) == 2
    plan(finished, run_file.with_name("next.yaml"), "--name", "next")
    plan(finished, run_file.with_name("run.yml"))
    assert "name: run-3\n" in run_file.with_name("run.yml").read_text()


def test_an_interrupted_start_goes_on_when_it_is_typed_again(
    appliance: Appliance, small_run: Path, tmp_path: Path
) -> None:
    path = rewrite(small_run, tmp_path / "slow.yaml", steps=12)
    with appliance.popen("train", "start", str(path)) as process:
        while "epsilon" not in (line := process.stderr.readline() if process.stderr else ""):
            assert line, process.poll()
        until(
            lambda: worker_of(process.pid, appliance.home / "runs") or process.poll() is not None, "there is a worker"
        )
        worker, _ = worker_of(process.pid, appliance.home / "runs") or (0, "")
        assert worker
        os.kill(worker, signal.SIGSTOP)  # else it could be done before somebody else has started
        busy = appliance("train", "start", str(path), expect=75)
        assert "train watch" in busy.err
        process.send_signal(signal.SIGINT)
        with suppress(ProcessLookupError):
            os.kill(worker, signal.SIGCONT)
        process.communicate(timeout=120)
    assert process.returncode == 130
    other = path.with_name("edited.yaml")
    other.write_text(path.read_text().replace("epsilon: 2.0", "epsilon: 3.0"))
    assert other.read_text() != path.read_text()
    assert "asks for another" in appliance("train", "start", str(other), expect=2).err
    other.write_text(path.read_text() + "gates: {int8: {max_loss: 3.0}}\n")
    assert "asks for another" in appliance("train", "start", str(other), expect=2).err
    assert "would go on with" in appliance("--dry-run", "train", "start", str(path)).out
    done = appliance("train", "start", str(path))
    assert "going on with" in done.err
    assert reservations(appliance) == 1
    (settled,) = facts(appliance, "run.settled")
    assert 12 <= settled["attempts"] <= 13, "a step that was being computed when it was interrupted stays charged"


def test_of_two_starts_at_once_one_reserves(appliance: Appliance, run_file: Path) -> None:
    both = [appliance.popen("train", "start", str(run_file)) for _ in range(2)]
    for process in both:
        process.communicate(timeout=300)
    assert reservations(appliance) == 1
    assert 0 in {process.returncode for process in both} <= {0, 2, 75}
