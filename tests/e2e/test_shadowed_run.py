"""A run directory that a taken-over worker has sown with modules, and the user who resumes that run from there."""

from __future__ import annotations

from pathlib import Path

from appliance.jobs.rundir import RunDir
from tests.adversarial.test_shadowed_modules import plant
from tests.e2e.conftest import in_place
from tests.fault.test_train_crash import hidden_template, one_run

__all__ = ["hidden_template"]


def test_a_run_whose_directory_was_sown_is_resumed_and_nothing_of_it_runs(
    hidden_template: Path, tmp_path: Path
) -> None:
    """Everything that a user starts is started from there, with PYTHONPATH there."""
    with in_place(hidden_template, "hidden") as appliance:
        run_dir = RunDir(one_run(appliance).directory)
        plant(run_dir.path, tmp_path / "ran")
        run_dir.tmp.mkdir(exist_ok=True)
        plant(run_dir.tmp, tmp_path / "ran")
        appliance.environment = {"PYTHONPATH": str(run_dir.path), "PYTHONUSERBASE": str(run_dir.path)}
        appliance.prefix = ("env", "-C", str(run_dir.path))
        assert appliance.json("train", "resume", run_dir.path.name)["run"] == run_dir.path.name
        appliance("key", "lock")
        appliance("key", "unlock")
    assert not (tmp_path / "ran").exists()
