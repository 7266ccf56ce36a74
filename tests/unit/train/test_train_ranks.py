"""Several ranks over gloo: at noise 0 and with a fixed sample they are bit for bit one process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hosts import two_hosts
from tests.unit.train.rig import FixedSampler

STEPS, UNITS = 11, 6  # with a fifth of six units in a batch, most ranks have an empty share most of the time
FAULTS = {
    "skip empty batches": {"Interrupted", "GateFailed"},  # ranks that are out of step
    "stray weights": {"GateFailed", "Interrupted"},
    "other gradients": {"GateFailed"},
    "second noise": {"GateFailed", "Interrupted"},
    "die": {"Interrupted"},
}
"""Traps that are put back, and how the ranks may end."""
PHASES = [
    {"name": "first", "steps": 4, "declared_units": 10, "expected_batch_size": 5},
    {"name": "then", "steps": STEPS - 4, "declared_units": 40, "expected_batch_size": 10},
]
TWO_HOSTS = {
    "size": 4,
    "steps": 4,
    "master": ["10.77.0.1", 29400],
    "addresses": ["10.77.0.1", "10.77.0.1", "10.77.0.2", "10.77.0.2"],
}

Seen = dict[str, list[dict[str, Any]]]
"""By name of the scenario: what each rank saw."""


def observe(model: Path, directory: Path, scenarios: dict[str, dict[str, Any]]) -> Seen:
    common = {"model": str(model), "size": 2, "units": UNITS, "steps": STEPS, "patience_s": 600}
    specs = {name: common | {"directory": str(directory / name)} | spec for name, spec in scenarios.items()}
    command = [sys.executable, "-m", "tests.unit.train.rank", json.dumps(specs)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seen: Seen = json.loads(done.stdout)
    return seen


@pytest.fixture(scope="session")
def seen(built_once: Callable[[str, Callable[[Path], None]], Path], tiny_model_dir: Path) -> Seen:
    scenarios: dict[str, dict[str, Any]] = {str(size): {"size": size} for size in (0, 2, 4)}
    scenarios |= {f"{size} phased": {"size": size, "phases": PHASES} for size in (0, 2)}
    # Where ranks would wait for ever, giving up soon is the answer that is expected.
    soon = ("skip empty batches", "die")
    scenarios |= {fault: {"fault": fault, "patience_s": 10 if fault in soon else 600} for fault in FAULTS}

    def build(directory: Path) -> None:
        (directory / "seen.json").write_text(json.dumps(observe(tiny_model_dir, directory, scenarios)))

    found: Seen = json.loads((built_once("ranks", build) / "seen.json").read_text())
    return found


def is_one_process(ranks: list[dict[str, Any]], single: dict[str, Any]) -> None:
    assert ranks[0]["sums"] == single["sums"], "the clipped sums"
    assert all(rank["weights"] == single["weights"] for rank in ranks)
    assert all(rank["history"] == single["history"] for rank in ranks)
    assert all((rank["steps"], rank["attempts"]) == (single["steps"], single["attempts"]) for rank in ranks)


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_are_bit_equal_to_one_process(seen: Seen, size: int) -> None:
    ranks = seen[str(size)]
    is_one_process(ranks, seen["0"][0])
    assert ranks[0]["steps"] == STEPS
    assert len(set(ranks[0]["weights"])) > STEPS // 2


def test_ranks_change_the_phase_together(seen: Seen) -> None:
    is_one_process(seen["2 phased"], seen["0 phased"][0])
    assert [entry[1:] for entry in seen["2 phased"][1]["history"]] == [[0.5, 4], [0.25, STEPS - 4]]


@pytest.mark.parametrize("size", [2, 4])
def test_every_unit_is_on_exactly_one_rank_and_a_rank_may_have_none(seen: Seen, size: int) -> None:
    ranks, sampler = seen[str(size)], FixedSampler(UNITS)
    for step, whole in enumerate(sampler.draw().tolist() for _ in range(STEPS)):
        shares = [rank["dealt"][step] for rank in ranks]
        assert sorted(unit for share in shares for unit in share) == whole
    empty = [not share for rank in ranks for share in rank["dealt"]]
    assert any(empty)
    assert not all(empty)
    assert any(not any(rank["dealt"][step] for rank in ranks) for step in range(STEPS)), "a batch that is empty whole"
    assert len({rank["collectives"] for rank in ranks}) == 1, "the number of collectives follows the share"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_trap_that_is_put_back_ends_the_run_and_does_not_hang(seen: Seen, fault: str) -> None:
    found = {rank["error"] for rank in seen[fault] if "error" in rank}
    assert found, seen[fault]
    assert found <= FAULTS[fault]
    if fault in ("stray weights", "second noise"):
        assert "GateFailed" in found


def test_ranks_with_other_gradients_end_before_a_record_is_dealt(seen: Seen) -> None:
    assert {rank["message"] for rank in seen["other gradients"]} == {
        "the ranks of the run do not have the same gradients"
    }


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    with two_hosts("rank") as names:
        yield names


def test_two_network_namespaces_as_hosts_are_bit_equal_to_one_process(
    tiny_model_dir: Path, tmp_path: Path, hosts: list[str]
) -> None:
    over = TWO_HOSTS | {"hosts": [hosts[0], hosts[0], hosts[1], hosts[1]]}
    found = observe(tiny_model_dir, tmp_path, {"hosts": over, "one": {"size": 0, "steps": 4}})
    is_one_process(found["hosts"], found["one"][0])
