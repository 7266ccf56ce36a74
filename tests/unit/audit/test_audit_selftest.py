"""The self-test passes a clean engine, always, leaves it as it was, and says what it has measured."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from appliance.audit import noise, sampling
from appliance.audit.accounting import stretches
from appliance.audit.bounds import SHARE
from appliance.audit.population import Population, shortened
from appliance.audit.sampling import Batches
from appliance.audit.selftest import LEAST_COMPONENT, component, examine, parts
from appliance.errors import GateFailed, WillNotFit
from appliance.jobs.plan import Phase, PrivacyPlan, UnitKind, UnitOfPrivacy
from appliance.jobs.selftest import Check
from appliance.train.loop import Trainer
from appliance.train.noise import DiscreteGaussian
from tests.unit.audit.mutants.registry import PHASES
from tests.unit.audit.rig_audit import claimed, tap


def failed(checks: list[Check]) -> list[tuple[str, str, str]]:
    return [(check.name, check.value, check.bound) for check in checks if not check.passed]


@pytest.mark.parametrize("clipping", ["fixed", "normalised"])
def test_a_clean_engine_never_fails(
    tiny_model_dir: Path, clipping: Any, stress_count: Callable[[int, int], int]
) -> None:
    plan = claimed(clipping=clipping)
    made = tap(tiny_model_dir, plan)
    before = [p.detach().clone() for p in made._assembled.adapter.trainable]
    for _ in range(stress_count(2, 100)):
        checks = examine(made, plan)
        assert failed(checks) == []
        (share,) = [float(check.value) for check in checks if check.name == "component.epsilon"]
        assert 0.9 < share <= 1
    assert all(torch.equal(p, old) for p, old in zip(made._assembled.adapter.trainable, before, strict=True))
    assert all(p.grad is None for p in made._assembled.adapter.trainable)


SUBJECTS = UnitOfPrivacy(kind=UnitKind.SUBJECT, key="patient", max_records=40)
SHORT = (Phase(name="all", steps=3, declared_units=9, expected_batch_size=9),)


@pytest.mark.parametrize(
    "changes",
    [
        {"max_grad_norm": 1e-5, "clipping": "normalised"},
        {"max_grad_norm": 1e5, "noise_multiplier": 0.3, "epsilon": 300.0},
        {"noise_multiplier": 40.0, "epsilon": 0.1},
        {"expected_batch_size": 7, "declared_units": 1999, "unit": SUBJECTS},
        {"unit": SUBJECTS, "steps": 1, "spare_steps": 0},
        {"phases": SHORT, "steps": 3, "epsilon": 20.0},
        PHASES,
    ],
    ids=["tiny clip", "huge clip", "much noise", "subjects", "one step", "every unit", "phases"],
)
def test_a_clean_engine_passes_at_the_edges_of_plans(tiny_model_dir: Path, changes: dict[str, Any]) -> None:
    plan = claimed(**changes)
    assert failed(examine(tap(tiny_model_dir, plan), plan)) == []


def test_a_clean_engine_in_bfloat16_passes(tiny_model_dir: Path) -> None:
    plan = claimed(clipping="normalised", unit=SUBJECTS)
    assert failed(examine(tap(tiny_model_dir, plan, torch.bfloat16), plan)) == []


def test_noise_that_is_drawn_ahead_passes_and_is_seen_if_it_comes_twice(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where it is drawn while the gradients are computed."""
    plan, begun = claimed(), []
    made = tap(tiny_model_dir, plan)
    source: Any = made._assembled.optimizer._noise
    source._ahead = ThreadPoolExecutor(max_workers=1)
    begin, draw = DiscreteGaussian.begin, DiscreteGaussian.draw

    def counted(self: DiscreteGaussian, count: int) -> None:
        begun.append(count)
        begin(self, count)

    monkeypatch.setattr(DiscreteGaussian, "begin", counted)
    assert failed(examine(made, plan)) == []
    assert begun, "the steps that the self-test drives begin none"

    def kept(self: Any, count: int) -> noise.Integers:
        before = self._begun
        drawn = draw(self, count)
        self._begun = before
        return drawn

    monkeypatch.setattr(DiscreteGaussian, "draw", kept)
    monkeypatch.setattr(DiscreteGaussian, "begin", lambda self, count: None if self._begun else begin(self, count))
    assert failed(dict(parts(made, plan))["loop"]()) != []


def test_a_part_that_cannot_be_driven_has_not_passed(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = claimed()
    made = dict(parts(tap(tiny_model_dir, plan), plan))

    def broken(self: Trainer) -> None:
        raise GateFailed("something is wrong")

    monkeypatch.setattr(Trainer, "_attempt", broken)
    assert failed(made["loop"]()) == [("loop.ran", "something is wrong", "to the end")]
    assert made["component"]() == []  # nothing is said of a mechanism that failed

    def full(self: Trainer) -> None:
        raise WillNotFit("no room")

    monkeypatch.setattr(Trainer, "_attempt", full)
    with pytest.raises(WillNotFit):
        made["invariance"]()


def test_a_step_that_does_not_reach_the_optimizer_is_refused(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from appliance.train.optimizer import ExactDPOptimizer

    made = tap(tiny_model_dir, claimed())
    monkeypatch.setattr(ExactDPOptimizer, "apply", lambda self, released: None)
    with pytest.raises(GateFailed, match="exactly once"):
        made.release([])


def test_the_component_figure_is_below_the_accounted_epsilon_and_knows_another_mechanism() -> None:
    plan = claimed()
    honest = component(plan, 1.004, 1 - 2.0**-12)
    assert honest.passed
    assert LEAST_COMPONENT < float(honest.value) < 1
    assert float(component(plan, 1.004, 1 - 2.0**-12, [0.0099]).value) < float(honest.value)
    assert not component(plan, 1.004, 1 - 2.0**-12, [0.0105]).passed  # more was sampled than was accounted
    assert not component(plan, 0.95, 1.0).passed  # more is lost than was accounted
    assert not component(plan, 1.004, 1.1).passed
    assert not component(plan, 1.2, 1.0).passed  # another mechanism, though a safer one
    assert not component(plan, 1.0, 0.0).passed


def sample(values: Any, tensors: tuple[tuple[str, int, int], ...]) -> noise.Sample:
    digits = np.zeros((len(values), 1), dtype=np.int64)
    return noise.Sample(values, digits, np.zeros(1, dtype=np.int64), 1e6, tensors, 0.0)


def test_noise_that_is_not_a_number_fails() -> None:
    values = np.zeros((4, 64), dtype=np.float32)
    values[2, 5] = np.nan
    assert [name for name, _, _ in failed(noise.judge(sample(values, (("t", 0, 64),))))] == ["noise.applied"]


def test_true_gaussians_of_any_shape_pass() -> None:
    generator = np.random.default_rng(5)
    for releases, parameters, cuts in ((4, 200_000, 7), (400, 1000, 3), (4000, 100, 1)):
        values = generator.standard_normal((releases, parameters), dtype=np.float32)
        edges = np.linspace(0, parameters, cuts + 1).astype(int)
        tensors = tuple((f"t{n}", int(a), int(b)) for n, (a, b) in enumerate(pairwise(edges)))
        checks = noise.judge(sample(values, tensors))
        assert failed(checks) == []
        assert all(float(check.bound) <= SHARE for check in checks if check.name != "noise.applied")


def test_true_coins_of_any_rate_pass() -> None:
    generator = np.random.default_rng(6)
    for units, rate, count in ((1, 0.5, 300), (36, 0.01, 12), (900, 0.3, 400), (50, 1.0, 20), (40_000, 1e-4, 2000)):
        drawn = [np.flatnonzero(generator.random(units) < rate) for _ in range(count)]
        assert failed(sampling.judge("coins", [Batches(units, rate, drawn)])) == []


def test_a_shortened_plan_has_two_phases_of_other_rates_and_batches() -> None:
    for plan in (claimed(), claimed(expected_batch_size=16, declared_units=64), claimed(**PHASES)):
        short = shortened(plan, 24, 12)
        first, second = short.schedule
        assert first.sample_rate != second.sample_rate or plan.phases
        assert (short.steps, short.spare_steps, len(stretches(short, 36))) == (24, 12, 2)
        assert PrivacyPlan.model_validate(short.model_dump()).attempts == 36


def test_a_population_has_units_of_one_and_of_as_many_records_as_may_be() -> None:
    plan = claimed(unit=SUBJECTS)
    population = Population(shortened(plan, 24, 12), 16.0, 5)
    sizes = [len(unit) for unit in population.units(0)]
    assert min(sizes) == 1
    assert max(sizes) == SUBJECTS.max_records
    assert [population.number_of(population[n]) for n in range(50)] == list(range(50))
