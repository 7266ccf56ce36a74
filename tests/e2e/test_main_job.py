"""The main job through the command line, on a tiny random model: every figure is checked against the ledger."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from appliance.flows.home import Home, Operator
from appliance.flows.run.plan import load
from appliance.flows.run.reserve import reserve
from appliance.jobs.job import EngineOptions
from tests.e2e.conftest import Appliance, unlocked


def facts(appliance: Appliance, type_: str) -> list[dict[str, Any]]:
    entries = appliance.here("--json", "ledger", "log", "--type", type_).document["entries"]
    return [entry["leaf"]["facts"] for entry in entries]


Finished = tuple[Appliance, dict[str, Any]]


def test_a_run_is_reserved_trained_charged_and_provable(finished: Finished) -> None:
    appliance, done = finished
    assert done["schema"] == "appliance.train.start/1"
    assert done["state"] == "finished"
    assert done["charged_attempts"] == 3
    assert done["reserved_attempts"] == 4

    (reserved,), (settled,) = facts(appliance, "run.reserved"), facts(appliance, "run.settled")
    assert reserved["plan"]["attempts"] == 4
    assert settled["attempts"] == settled["steps"] == 3
    adapter = appliance.home / "runs" / done["run"] / "adapter" / "adapter_model.safetensors"
    with safe_open(str(adapter), "pt") as tensors:
        assert any(tensors.get_tensor(name).abs().sum() > 0 for name in tensors.keys() if "lora_B" in name)  # noqa: SIM118
    appliance("ledger", "verify")

    shown = appliance.json("budget", "show", "notes")["budgets"][0]
    assert 0 < shown["spent_epsilon"] == shown["reserved_epsilon"] < 2


def test_the_guarantee_is_what_independent_accountants_say_of_the_ledger(finished: Finished) -> None:
    appliance, _ = finished
    (settled,) = facts(appliance, "run.settled")
    sigma, rate = float(settled["noise_multiplier"]), Fraction(str(settled["sample_rate"]))
    delta = float(settled["delta"]) - float(settled["sampler_delta"])
    charged = float(settled["epsilon_charged"])

    code = (
        "import sys; from opacus.accountants import PRVAccountant, RDPAccountant\n"
        "s, q, t, d = float(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])\n"
        "for kind in (PRVAccountant, RDPAccountant):\n"
        "    a = kind(); a.history = [(s, q, t)]\n"
        "    fine = dict(eps_error=0.0005, delta_error=d / 1e6) if kind is PRVAccountant else {}\n"
        "    print(a.get_epsilon(d, **fine))\n"
    )
    arguments = [str(sigma), str(float(rate)), str(settled["attempts"]), str(delta)]
    out = subprocess.run([sys.executable, "-W", "ignore", "-c", code, *arguments], capture_output=True, check=True)
    prv, rdp = map(float, out.stdout.split())
    assert charged >= prv - 1e-9, "charged less than an independent accountant says"
    assert charged == pytest.approx(prv, abs=max(0.012, 0.01 * prv))
    assert charged < rdp
    assert charged <= float(facts(appliance, "run.reserved")[0]["plan"]["epsilon"]) + 0.012


def test_a_run_that_overspends_is_refused_before_anything_is_opened(
    finished: Finished, planned: Callable[..., Path]
) -> None:
    """The run would have fitted before the finished one was."""
    appliance, _ = finished
    second = planned("second", epsilon="8")
    # Sealed store, no data, no model: had the refusal come later, one of these would have been the error.
    for path in (*(appliance.home / "objects").iterdir(), *(appliance.home / "models").glob("*/*")):
        path.unlink()
    before = list((appliance.home / "runs").iterdir())
    refused = appliance("train", "start", str(second), expect=5)
    assert "exceeds the cap 8" in refused.err
    assert list((appliance.home / "runs").iterdir()) == before
    assert facts(appliance, "run.refused")[0]["code"] == 5


def test_both_readings_of_the_budget_are_shown_and_which_decides(
    finished: Finished, planned: Callable[..., Path]
) -> None:
    """The first run was fixed before anything came out; the second could be chosen by it."""
    appliance, _ = finished
    readings = {}
    for rule in ("distributions", "filter"):
        if rule == "filter":
            second = load(planned("second"))
            with unlocked(appliance):
                reserve(Home.open(appliance.home), second, EngineOptions(), Operator(name="tester"))
        shown = appliance.json("budget", "show", "notes")["budgets"][0]
        assert shown["counted_by"] == rule
        assert shown["reserved_epsilon"] == shown["by_" + rule]
        assert shown["by_filter"] > shown["by_distributions"] > 0
        assert shown["cap_delta"] == pytest.approx(1 / 60_000)
        assert 0 < shown["filter_share"] < 1
        reserved = facts(appliance, "run.reserved")[-1]
        assert (reserved["counted_by"], float(reserved["lifetime_delta"])) == (rule, pytest.approx(1 / 60_000))
        assert float(reserved["filter_order"]) == shown["filter_order"]
        readings[rule] = appliance("budget", "show", "notes").out
    for said in readings.values():
        assert "at delta 1.67e-05" in said
        assert "by the Rényi filter of order" in said
        assert "by privacy loss distributions: epsilon" in said
    assert "the distributions decide" in readings["distributions"]
    assert "the filter decides" in readings["filter"]


def test_a_renamed_copy_inherits_what_was_spent(finished: Finished, tmp_path: Path) -> None:
    appliance, _ = finished
    copy = tmp_path / "renamed.csv"
    copy.write_text((tmp_path / "notes.csv").read_text().replace("question,answer", "q,a"))
    with unlocked(appliance):
        appliance(
            "data", "ingest", str(copy), "--name", "renamed", "--units", "600", "--prompt", "q", "--completion", "a"
        )
    small = ("--steps", "3", "--batch", "60", "--max-tokens", "64", "--rank", "2")
    appliance("train", "plan", "renamed", "tiny", "--epsilon", "8", "--out", str(tmp_path / "b.yaml"), *small, expect=5)


def test_aborting_charges_what_was_attempted(appliance: Appliance, planned: Callable[..., Path]) -> None:
    long = planned("long", "--steps", "4000", "--batch", "6")  # far more than can be made before it is aborted
    run = appliance.json("train", "start", str(long), "--detach")["run"]
    aborted = appliance.json("train", "abort", run)
    assert aborted["state"] == "aborted"
    assert aborted["charged_attempts"] < 4000
    appliance("train", "resume", run, expect=2)
    appliance("ledger", "verify")


def test_what_is_demonstrated_in_the_dry_run_is_not_done(appliance: Appliance, run_file: Path) -> None:
    appliance("--dry-run", "train", "start", str(run_file))
    assert facts(appliance, "run.reserved") == []
