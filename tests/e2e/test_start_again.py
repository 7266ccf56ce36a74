"""A run file is trained once: started again it goes on with its run, or is refused, and spends nothing."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.e2e.conftest import Appliance, plan
from tests.e2e.test_main_job import facts


def reservations(appliance: Appliance) -> int:
    return len(facts(appliance, "run.reserved"))


def test_a_run_that_ended_is_not_trained_again_unless_that_is_said(appliance: Appliance, run_file: Path) -> None:
    first = appliance.json("train", "start", str(run_file))
    spent = appliance.json("budget", "show")
    refused = appliance("train", "start", str(run_file), expect=2)
    assert f"{first['run']}) is finished" in refused.err
    assert "--again" in refused.err
    assert appliance.json("budget", "show") == spent
    assert appliance("train", "plan", "notes", "tiny", "--epsilon", "1", "--name", "run", expect=2)
    second = appliance.json("train", "start", str(run_file), "--again")
    assert (first["name"], second["name"]) == ("run", "run-2")
    assert second["state"] == "finished"
    assert reservations(appliance) == 2
    plan(appliance, run_file.with_name("next.yaml"), "--name", "next")
    plan(Appliance(appliance.home), run_file.with_name("run.yml"))
    assert "name: run-3\n" in run_file.with_name("run.yml").read_text()


def test_an_interrupted_start_goes_on_when_it_is_typed_again(appliance: Appliance, tmp_path: Path) -> None:
    path = tmp_path / "slow.yaml"
    plan(appliance, path, "--steps", "12")
    with appliance.popen("train", "start", str(path)) as process:
        while "epsilon" not in (line := process.stderr.readline() if process.stderr else ""):
            assert line, process.poll()
        busy = appliance("train", "start", str(path), expect=75)
        assert "train watch" in busy.err
        process.send_signal(signal.SIGINT)
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
