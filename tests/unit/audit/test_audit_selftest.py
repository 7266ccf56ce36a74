"""The self-test passes a clean engine, always, and sees every fault that is put into it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from appliance.audit import noise
from appliance.audit.bounds import SHARE
from appliance.audit.canaries import directions
from appliance.audit.selftest import LEAST_COMPONENT, component, examine
from appliance.errors import GateFailed
from appliance.jobs.selftest import Check
from tests.unit.audit.mutants import MUTANTS, Mutant
from tests.unit.audit.rig_audit import claimed, tap


def failed(checks: list[Check]) -> list[str]:
    return [check.name for check in checks if not check.passed]


@pytest.mark.parametrize("clipping", ["fixed", "normalised"])
def test_a_clean_engine_never_fails(
    tiny_model_dir: Path, clipping: Any, stress_count: Callable[[int, int], int]
) -> None:
    plan = claimed(clipping=clipping)
    made = tap(tiny_model_dir, plan)
    before = [p.detach().clone() for p in made._assembled.adapter.trainable]
    for _ in range(stress_count(10, 100)):
        checks = examine(made, plan)
        assert failed(checks) == []
        (share,) = [float(check.value) for check in checks if check.name == "component.epsilon"]
        assert LEAST_COMPONENT < share <= 1
    assert all(torch.equal(p, old) for p, old in zip(made._assembled.adapter.trainable, before, strict=True))
    assert all(p.grad is None for p in made._assembled.adapter.trainable)


@pytest.mark.parametrize(
    "changes",
    [
        {"max_grad_norm": 1e-5, "clipping": "normalised"},
        {"max_grad_norm": 1e5},
        {"noise_multiplier": 0.3, "epsilon": 300.0},
        {"noise_multiplier": 40.0, "epsilon": 0.1},
        {"expected_batch_size": 7, "declared_units": 1999},
    ],
)
def test_a_clean_engine_passes_at_the_edges_of_plans(tiny_model_dir: Path, changes: dict[str, Any]) -> None:
    plan = claimed(**changes)
    assert failed(examine(tap(tiny_model_dir, plan), plan)) == []


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_fault_is_seen(tiny_model_dir: Path, mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = claimed()
    made = tap(tiny_model_dir, plan)
    mutant.put_in(monkeypatch, made)
    seen = failed(examine(made, plan))
    assert mutant.seen_by in seen


def test_a_step_that_does_not_reach_the_optimizer_is_refused(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from appliance.train.optimizer import ExactDPOptimizer

    made = tap(tiny_model_dir, claimed())
    monkeypatch.setattr(ExactDPOptimizer, "apply", lambda self, released: None)
    with pytest.raises(GateFailed, match="exactly once"):
        made.release([])


def test_every_tensor_is_reached_by_a_direction(tiny_model_dir: Path) -> None:
    made = tap(tiny_model_dir, claimed())
    canaries = directions(made, np.random.default_rng(1))
    assert len(canaries) == 128
    at = np.concatenate([canary.coordinates for canary in canaries])
    assert len(set(at.tolist())) == len(at)
    for _, start, stop in made.tensors:
        assert ((at >= start) & (at < stop)).any()
    assert made.tensors[0][1] == 0
    assert made.tensors[-1][2] == made.parameters


def test_many_tensors_share_canaries() -> None:
    class Wide:
        parameters, clip_norm = 40_000, 1.0
        tensors = tuple((f"t{n}", 100 * n, 100 * n + 100) for n in range(400))

    canaries = directions(Wide(), np.random.default_rng(1))  # type: ignore[arg-type]
    assert len(canaries) == 128
    reached = {int(at) // 100 for canary in canaries for at in canary.coordinates}
    assert reached == set(range(400))


def test_the_component_figure_is_below_the_accounted_epsilon_and_knows_another_mechanism() -> None:
    plan = claimed()
    honest = component(plan, 1.004, 1 - 2.0**-12)
    assert honest.passed
    assert LEAST_COMPONENT < float(honest.value) < 1
    assert not component(plan, 0.95, 1.0).passed  # more is lost than was accounted
    assert not component(plan, 1.004, 1.1).passed
    assert not component(plan, 1.2, 1.0).passed  # another mechanism, though a safer one
    assert not component(plan, 1.0, 0.0).passed


def test_noise_that_is_not_a_number_fails(tiny_model_dir: Path) -> None:
    values = np.zeros((4, 64), dtype=np.float32)
    values[2, 5] = np.nan
    assert failed(noise.judge(noise.Sample(values, (("t", 0, 64),), 1e-6))) == ["noise.finite"]


def test_true_gaussians_of_any_shape_pass() -> None:
    generator = np.random.default_rng(5)
    for releases, parameters, cuts in ((4, 200_000, 7), (400, 1000, 3), (4000, 100, 1)):
        values = generator.standard_normal((releases, parameters), dtype=np.float32)
        edges = np.linspace(0, parameters, cuts + 1).astype(int)
        tensors = tuple((f"t{n}", int(a), int(b)) for n, (a, b) in enumerate(pairwise(edges)))
        checks = noise.judge(noise.Sample(values, tensors, 1e-6))
        assert failed(checks) == []
        assert all(float(check.bound) <= SHARE for check in checks)
