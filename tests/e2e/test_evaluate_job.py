"""Evaluation on held-out data through the command line: paid first, released with noise, charged whatever happens."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import TOKEN, Appliance, unsealed, write_strangers
from tests.e2e.test_main_job import facts

HELD = "held"
COLUMNS = ("--prompt", "question", "--completion", "answer")


@pytest.fixture
def appliance(finished_home: Path, tmp_path: Path) -> Iterator[Appliance]:
    """A copy of the finished home, unsealed."""
    with unsealed(finished_home, tmp_path) as made:
        yield made


@pytest.fixture
def run(appliance: Appliance) -> str:
    """The finished run."""
    return str(appliance.json("train", "status")["runs"][0]["run"])


def budget_of(appliance: Appliance, name: str) -> dict[str, Any]:
    budgets = {budget["name"]: budget for budget in appliance.json("budget", "show")["budgets"]}
    found: dict[str, Any] = budgets[name]
    return found


def test_an_evaluation_is_paid_released_and_recorded(appliance: Appliance, run: str) -> None:
    cost = appliance.json("--dry-run", "evaluate", "run", run, "--dataset", HELD)
    assert cost["comparisons"] == ["adapter"]
    assert facts(appliance, "evaluation.reserved") == []

    appliance("watermark", "embed", run)
    done = appliance.json("evaluate", "run", run, "--dataset", HELD, "--public-tokens", "300")
    assert [comparison["name"] for comparison in done["comparisons"]] == ["adapter", "marked"]
    assert done["epsilon_charged"] == "1.0000"
    assert int(done["public"]["tokens"]) == 384
    assert float(done["public"]["low"]) <= float(done["public"]["change_percent"]) <= float(done["public"]["high"])
    (settled,) = facts(appliance, "evaluation.settled")
    assert settled["released"] == done["released"]

    spent = budget_of(appliance, HELD)
    assert 0.9 < spent["spent_epsilon"] == spent["reserved_epsilon"] <= 1  # said at the larger delta of the cap
    assert spent["spent_epsilon"] == pytest.approx(done["epsilon_after"])
    assert [one["state"] for one in spent["evaluations"]] == ["settled"]
    assert budget_of(appliance, "notes")["evaluations"] == []
    appliance("ledger", "verify")
    for directory in (appliance.home / "runs").glob("eval_*"):
        left = {path.name for path in directory.iterdir()}
        assert left == {"job.json", "evidence.json", "result.json", "supervisor.lock", "worker.lock"}
    for path in (path for path in appliance.home.rglob("*") if path.is_file()):
        assert TOKEN.encode() not in path.read_bytes(), path


def test_what_is_not_held_out_is_refused(appliance: Appliance, tmp_path: Path, run: str) -> None:
    assert "was trained on" in appliance("evaluate", "run", run, "--dataset", "notes", expect=4).err
    path = tmp_path / "again.csv"
    path.write_text((tmp_path / "notes.csv").read_text())
    named = ("--name", "again", "--units", "600", "--purpose", "evaluation")
    appliance("data", "ingest", str(path), *named, *COLUMNS)
    assert "shares units" in appliance("evaluate", "run", run, "--dataset", "again", expect=4).err
    other = tmp_path / "other.csv"
    write_strangers(other, "quite other")
    appliance("data", "ingest", str(other), "--name", "other", "--units", "600", *COLUMNS)
    refused = appliance("evaluate", "run", run, "--dataset", "other", expect=4)
    assert "ingested for training" in refused.err
    assert [one["code"] for one in facts(appliance, "evaluation.refused")] == [4, 4, 4]
    appliance("evaluate", "run", "run_x", "--dataset", HELD, expect=11)
    appliance("evaluate", "run", run, "--dataset", "nothing", expect=11)
    assert facts(appliance, "evaluation.reserved") == []


def test_what_cannot_be_evaluated_costs_nothing(appliance: Appliance, run: str) -> None:
    refused = appliance("evaluate", "run", run, "--dataset", HELD, "--epsilon", "8.5", expect=5)
    assert "exceeds the cap 8" in refused.err
    assert facts(appliance, "evaluation.refused")[0]["code"] == 5

    weights = appliance.home / "runs" / run / "adapter" / "adapter_model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    appliance("evaluate", "run", run, "--dataset", HELD, expect=8)
    weights.write_bytes(data)

    appliance("key", "lock")
    appliance("evaluate", "run", run, "--dataset", HELD, expect=13)
    assert facts(appliance, "evaluation.reserved") == []
    assert budget_of(appliance, HELD)["reserved_epsilon"] == 0


def test_an_evaluation_that_is_killed_is_charged_in_full_and_can_be_repeated(appliance: Appliance, run: str) -> None:
    process = appliance.popen("evaluate", "run", run, "--dataset", HELD, "--public-tokens", "0")
    deadline = time.monotonic() + 300
    while not (pids := worker_pids(appliance)):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdout, process.stderr):
        assert stream is not None
        stream.close()
    while any(Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids):
        assert time.monotonic() < deadline, "the worker outlived its supervisor"
        time.sleep(0.02)

    before = budget_of(appliance, HELD)
    assert 0.9 < before["reserved_epsilon"] <= 1  # all of it, said at the larger delta of the cap
    assert before["spent_epsilon"] == 0
    shown = appliance("evaluate", "run", run, "--dataset", HELD, "--public-tokens", "0").out
    assert "no watermark is embedded yet" in shown
    assert "95 % interval" in shown
    assert "public text" not in shown
    assert facts(appliance, "evaluation.failed")[0]["epsilon_charged"] == "1.0000"
    after = budget_of(appliance, HELD)
    assert sorted(one["state"] for one in after["evaluations"]) == ["failed", "settled"]
    assert 1.2 < after["by_distributions"] < 2  # two compose to less than their sum
    assert after["counted_by"] == "filter"  # the second was asked for after the first may have shown something
    assert after["spent_epsilon"] == after["reserved_epsilon"] == after["by_filter"] < after["cap_epsilon"]
    appliance("ledger", "verify")


def worker_pids(appliance: Appliance) -> list[int]:
    """Workers of evaluations in this home."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if f"{appliance.home}/runs/eval_".encode() in command:
                found.append(int(entry.name))
    return found
