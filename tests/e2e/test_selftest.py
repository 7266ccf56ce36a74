"""The self-test stands before every run: a broken engine never gets a key, an honest one is tested and recorded.

The broken software is real software: a copy of the package with one line altered, started as a user would. Because
the copy is not installed, it and its workers are started in its own directory, and look for modules there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import appliance as package
from appliance.jobs.rundir import RunDir
from appliance.jobs.selftest import SelftestJob, ShapeProof
from tests.e2e.conftest import Appliance, rewrite
from tests.fault.test_train_crash import Supervised

BROKEN = {
    "half the noise": (
        "train/optimizer.py",
        "self._summed.to(torch.int64) + noise)",
        "self._summed.to(torch.int64) + noise // 2)",
        {"noise.applied", "loop.releases"},
    ),
    "no clip": (
        "train/clipping.py",
        "return torch.where(torch.isfinite(found), scale / self.grid, 0.0).float()",
        "return torch.full_like(scale, 1 / self.grid).float()",
        {"replay.directions", "replay.dense"},
    ),
    "one tensor without noise": (
        "train/noise.py",
        "        return out\n",
        "        out[:64] = 0\n        return out\n",
        {"noise.tensors"},
    ),
}


def altered(directory: Path, name: str, old: str, new: str) -> None:
    """A copy of the package in `directory` with one line altered, whose workers run the copy."""
    source = Path(package.__file__).parent
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(source, directory / "appliance", ignore=ignored)
    for beside in ("migrations", "policies"):
        shutil.copytree(source.parent / beside, directory / beside, ignore=ignored)
    replace(directory / "appliance" / name, old, new)
    interpreter = directory / "appliance" / "isolation" / "interpreter.py"
    replace(interpreter, 'DIRECTORY = "/"', f"DIRECTORY = {str(directory)!r}")
    replace(interpreter, '_ISOLATED = ("-I", "-B")', '_ISOLATED = ("-B",)')


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, f"{path.name} has changed: the alteration has to be written anew"
    path.write_text(text.replace(old, new))


def entries(appliance: Appliance) -> list[dict[str, Any]]:
    return [entry["leaf"] for entry in appliance.json("ledger", "log")["entries"]]


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_engine_is_refused_before_a_key_is_released(
    appliance: Appliance, run_file: Path, tmp_path: Path, fault: str
) -> None:
    name, old, new, seen_by = BROKEN[fault]
    altered(tmp_path / "software", name, old, new)
    refused = subprocess.run(
        [sys.executable, "-m", "appliance", "--home", str(appliance.home), "train", "start", str(run_file)],
        cwd=tmp_path / "software",
        env={**os.environ, "APPLIANCE_PASSPHRASE_FILE": str(appliance.passphrase)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 10, refused.stderr
    assert "self-test failed" in refused.stderr

    leaves = entries(appliance)
    kinds = [leaf["type"] for leaf in leaves]
    assert "run.started" not in kinds  # without this leaf the agent releases no key
    tested = next(leaf for leaf in leaves if leaf["type"] == "audit.selftest")
    assert tested["software"] != leaves[0]["software"]
    assert tested["facts"]["passed"] is False
    assert seen_by <= {check["name"] for check in tested["facts"]["checks"] if not check["passed"]}
    failed = next(leaf for leaf in leaves if leaf["type"] == "run.failed")
    assert (failed["facts"]["attempts"], failed["facts"]["code"]) == (0, 10)
    assert float(failed["facts"]["epsilon_charged"]) == 0
    assert kinds.index("audit.selftest") < kinds.index("run.failed")


def test_an_honest_engine_is_tested_once_and_on_demand_and_proves_shapes_once(
    appliance: Appliance, run_file: Path, tmp_path: Path
) -> None:
    started = appliance("train", "start", str(run_file))
    assert "engine self-test passed" in started.out
    leaves = entries(appliance)
    kinds = [leaf["type"] for leaf in leaves]
    assert kinds.count("audit.selftest") == 1
    assert kinds.index("run.reserved") < kinds.index("audit.selftest") < kinds.index("run.started")
    tested = leaves[kinds.index("audit.selftest")]
    reserved = leaves[kinds.index("run.reserved")]
    assert tested["facts"]["spec_sha256"] == reserved["facts"]["spec_sha256"]
    assert tested["facts"]["run_id"] == reserved["facts"]["run_id"]
    assert tested["facts"]["passed"] is True
    assert all(check["passed"] for check in tested["facts"]["checks"])

    first, proved = asked_and_proved(RunDir(appliance.home / "runs" / reserved["facts"]["run_id"]))
    assert first.proof is None
    assert proved is not None
    second, taken = asked_and_proved(start_and_kill(appliance, rewrite(run_file, tmp_path / "second.yaml")))
    assert second.proof == taken == proved

    appliance("key", "lock")  # the test needs no key
    done = appliance.json("audit", "selftest", str(run_file))
    assert done["passed"] is True
    assert done["run"].startswith("selftest_")
    assert {check["name"] for check in done["checks"]} == {check["name"] for check in tested["facts"]["checks"]}
    recorded = [leaf["facts"]["run_id"] for leaf in entries(appliance) if leaf["type"] == "audit.selftest"]
    assert recorded == [reserved["facts"]["run_id"], second.run_id, done["run"]]


def start_and_kill(appliance: Appliance, run_file: Path) -> RunDir:
    """Start a run and kill it when its self-test is over and its worker begins; the run's directory."""
    life = Supervised(appliance, "train", "start", str(run_file))
    assert life.find_worker() is not None
    life.kill(life.process.pid)
    life.process.communicate()
    return RunDir(life.directory)


def asked_and_proved(run: RunDir) -> tuple[SelftestJob, ShapeProof | None]:
    """What the self-test of a run was asked to do, and what was proved of shapes for its worker."""
    return SelftestJob.model_validate_json(run.selftest.job.read_bytes()), run.read_proof()
