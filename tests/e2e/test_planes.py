"""The two planes: the control plane never loads torch, help is quick, the worker alone gets no key."""

from __future__ import annotations

import json
import os
import pkgutil
import resource
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import appliance.cli
import appliance.flows
from tests.e2e.conftest import Appliance

HEAVY = ("torch", "opacus", "transformers", "peft", "bitsandbytes", "pyarrow", "openpyxl", "pandas")


def test_no_flow_loads_torch() -> None:
    names = [module.name for module in pkgutil.walk_packages(appliance.flows.__path__, "appliance.flows.")]
    names += [module.name for module in pkgutil.iter_modules(appliance.cli.__path__, "appliance.cli.")]
    assert {"appliance.flows.run.train", "appliance.cli.train"} <= set(names)
    names.append("appliance.keyagent.__main__")
    code = f"import sys, {', '.join(names)}\nprint([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def processor_seconds(work: Callable[[], object]) -> float:
    """Processor time of the child processes that `work` starts: what a quiet machine would take, on a busy one too."""

    def used() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = used()
    work()
    return used() - before


def test_help_answers_at_once() -> None:
    help_ = [sys.executable, "-m", "appliance", "--help"]
    best = min(processor_seconds(lambda: subprocess.run(help_, capture_output=True, check=True)) for _ in range(5))
    assert best < 0.3


def test_help_loads_no_database(tmp_path: Path) -> None:
    code = "import sys, appliance.cli.app\nprint([m for m in ('sqlalchemy', 'numpy', 'pydantic') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_ledger_verify_starts_quickly(sealed: Appliance) -> None:
    best = min(processor_seconds(lambda: sealed("ledger", "verify")) for _ in range(3))
    assert best < 1.0


def test_a_worker_started_by_hand_gets_no_key(appliance: Appliance, run_file: Path) -> None:
    run = appliance.json("train", "start", str(run_file))["run"]
    run_dir = appliance.home / "runs" / run
    environment = {**os.environ, "APPLIANCE_SUPERVISOR": str(os.getpid())}
    # The run directory still holds its job and the evidence that opened the data once.
    subprocess.run([sys.executable, "-m", "appliance.worker", str(run_dir)], env=environment, check=False, cwd=run_dir)
    result = json.loads((run_dir / "result.json").read_bytes())
    assert result["error"] == "KeyUnavailable"
    assert "used" in result["message"]


@pytest.mark.loopback
def test_the_suite_runs_with_nothing_but_loopback() -> None:
    names = [name for _, name in socket.if_nameindex()]
    if names != ["lo"]:
        pytest.skip("not in a network namespace: `make test` makes one where it may")
    with pytest.raises(OSError, match="unreachable"):
        socket.create_connection(("192.0.2.1", 80), timeout=2)
