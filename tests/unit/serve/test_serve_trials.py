"""What a drill and a measurement count: figures by hand, and faults that must be seen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import ServingDegraded
from appliance.jobs.job import IsolationSpec
from appliance.jobs.rundir import RunDir
from appliance.jobs.serve import Health, ServeJob
from appliance.jobs.trials import DrillJob
from appliance.serve.bench import sum_up
from appliance.serve.breaker import FORGIVEN, MOST_PROOFS, Breaker
from appliance.serve.load import Seen
from tests.unit.serve.conftest import llama


def seen(due: float, **more: Any) -> Seen:
    stated = {"sent": due + 0.01, "first": due + 0.1, "last": due + 0.5, "tokens": 5, "outcome": "answered"}
    return Seen(due=due, **stated | more)


def test_a_measurement_by_hand() -> None:
    found = sum_up([seen(float(number)) for number in range(10)], busy_s=4.9)
    assert found.first_token.p50 == pytest.approx(100)
    assert found.per_token.p99 == pytest.approx(100)
    assert found.whole.p95 == pytest.approx(500)
    assert found.tokens_per_s == pytest.approx(50 / 9.5, abs=1e-3)
    assert found.in_flight == pytest.approx(4.9 / 9.5, abs=1e-4)
    assert found.littles_residual == pytest.approx(0.1 / 4.9, abs=1e-5)
    assert found.harness_overhead == pytest.approx(0.01 / 0.5, abs=1e-5)


def test_a_harness_that_waits_for_answers_is_found_out() -> None:
    """Coordinated omission: a client that sends late and counts from then sees less than the gateway or the user."""
    late = [seen(float(number), sent=number + 3.0, first=number + 3.1, last=number + 3.5) for number in range(10)]
    found = sum_up(late, busy_s=5.0)
    assert found.whole.p50 == pytest.approx(3500)
    assert found.littles_residual > 1
    assert found.harness_overhead > 0.8


def test_failures_are_counted_and_nothing_at_all_is_an_error() -> None:
    found = sum_up([seen(0.0), seen(1.0, outcome="cut"), seen(2.0, outcome="lost", first=0.0)], busy_s=1.0)
    assert (found.requests, found.answered, found.failed) == (3, 1, 2)
    with pytest.raises(ServingDegraded):
        sum_up([seen(0.0, outcome="lost")], busy_s=1.0)


def test_the_breaker_decides_by_counts_alone() -> None:
    def life(events: str) -> list[bool]:
        breaker, states = Breaker(Health(failures=2, proofs=3)), []
        for one in events:
            {"p": breaker.prove, "s": breaker.succeed, "f": breaker.fail, "k": lambda: breaker.fail(gone=True)}[one]()
            states.append(breaker.well)
        return states

    assert life("p") == [True]
    assert life("pff")[-2:] == [True, False]
    assert life("pfsfsf")[-1], "failures that are not in a row"
    assert life("pk")[-1] is False
    assert life("pkpp")[-1] is False
    assert life("pkppp")[-1] is True
    assert life("pkppfpp")[-1] is False, "a failure begins the proofs anew"
    assert life("pkssspp")[-1] is False, "answers that began before prove nothing"
    assert life("pkpppk" + "p" * 5)[-1] is False
    assert life("pkpppk" + "p" * 6)[-1] is True
    flapping = "p" + ("k" + "p" * MOST_PROOFS) * 6
    assert life(flapping) == life(flapping)
    assert life(flapping)[-1] is True
    assert life("pkpppk" + "p" * 6 + "s" * FORGIVEN + "f" + "f" + "ppp")[-1] is False
    assert life("pkpppk" + "p" * 6 + "s" * FORGIVEN + "f" + "f" + "p" * 6)[-1] is True


def test_a_drill_sees_what_is_lost(tiny_gguf: Path, tmp_path: Path) -> None:
    """Both engines are one that garbles for ever: nothing can be answered, and the drill must say so."""
    health = Health(first_token_s=0.5, next_token_s=0.5, probe_s=0.1, patience_s=0.3, restart_s=60.0)
    serve = ServeJob(
        run_id="run_1",
        serving_id="serving_1",
        model="notes",
        engines=(llama("primary", tiny_gguf),),
        clients="x",
        health=health,
        isolation=IsolationSpec(network="preferred"),
    )
    RunDir(tmp_path).write_job(DrillJob(run_id="run_1", serve=serve, requests=120, rate=60.0))
    environment = {**os.environ, "APPLIANCE_SUPERVISOR": str(os.getpid())}
    subprocess.run([sys.executable, "-I", "-m", "appliance.serve", str(tmp_path)], env=environment, check=True)
    found = {one["fault"]: one for one in json.loads((tmp_path / "result.json").read_text())["faults"]}
    assert found["primary garble"]["lost"] > 0
    assert all(one["requests"] == one["answered"] + one["cut"] + one["lost"] for one in found.values())
