"""`report build` and `report verify` as a user has them, on a run that was reserved and then aborted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from appliance.flows.home import Home, Operator
from appliance.flows.run.plan import load
from appliance.flows.run.reserve import reserve
from appliance.jobs.job import EngineOptions
from tests.e2e.conftest import Appliance


def test_report_of_an_aborted_run(appliance: Appliance, run_file: Path, tmp_path: Path) -> None:
    row = reserve(Home.open(appliance.home), load(run_file), EngineOptions(), Operator(name="tester"))
    open_ = appliance.json("report", "build", row.id, "--out", str(tmp_path / "open"))
    assert open_["schema"] == "appliance.report.build/1"
    appliance("train", "abort", row.id)
    appliance("report", "build", row.id, "--out", str(tmp_path / "aborted"))
    keys = tmp_path / "keys.txt"
    keys.write_text("\n".join(appliance.json("ledger", "head")["keys"]) + "\n")
    for name, tone in (("open", "open"), ("aborted", "caution")):
        directory = tmp_path / name
        seen = appliance.json("report", "verify", str(directory), "--trusted-key", str(keys))
        assert seen["verdict"] == "intact"
        alone = [sys.executable, "-I", str(directory / "verify.py"), "--trusted-key", str(keys)]
        assert subprocess.run(alone, capture_output=True, check=False).returncode == 0
        assert json.loads((directory / "report.json").read_bytes())["verdict"]["tone"] == tone
    appliance("report", "build", row.id, "--out", str(tmp_path / "open"), expect=2)
    appliance("report", "build", "run_none", "--out", str(tmp_path / "none"), expect=11)
    page = tmp_path / "aborted" / "report.html"
    page.write_bytes(page.read_bytes().replace(b"released no adapter", b"released an adapter"))
    appliance("report", "verify", str(tmp_path / "aborted"), "--trusted-key", str(keys), expect=8)
