"""A run directory that a taken-over worker has sown with modules, and the user who resumes that run from there."""

from __future__ import annotations

import time
from pathlib import Path

from appliance.flows import launch
from appliance.jobs.rundir import RunDir
from tests.adversarial.test_shadowed_modules import plant
from tests.e2e.conftest import Appliance, plan


def test_a_run_whose_directory_was_sown_is_resumed_and_nothing_of_it_runs(appliance: Appliance, tmp_path: Path) -> None:
    """Everything that a user starts is started from there, with PYTHONPATH there."""
    plan(appliance, tmp_path / "run.yaml", "--steps", "12", "--batch", "6")
    with appliance.popen("--json", "train", "start", str(tmp_path / "run.yaml")) as process:
        run_dir = RunDir(wait_for_a_run(appliance.home / "runs"))
        process.terminate()
        process.communicate()
    launch.wait_for_workers(run_dir)
    plant(run_dir.path, tmp_path / "ran")
    run_dir.tmp.mkdir(exist_ok=True)
    plant(run_dir.tmp, tmp_path / "ran")
    appliance.environment = {"PYTHONPATH": str(run_dir.path), "PYTHONUSERBASE": str(run_dir.path)}
    appliance.prefix = ("env", "-C", str(run_dir.path))
    assert appliance.json("train", "resume", run_dir.path.name)["run"] == run_dir.path.name
    appliance("key", "lock")
    appliance("key", "unlock")
    assert not (tmp_path / "ran").exists()


def wait_for_a_run(runs: Path) -> Path:
    deadline = time.monotonic() + 120
    while not (begun := [path.parent for path in runs.glob("*/journal.jsonl") if path.stat().st_size]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return begun[0]
