"""The ablation of curricula changes the order alone: every order trains on the same batches, under the same noise."""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from appliance.train.loop import Trainer

_before = list(sys.path)
sys.path.insert(0, str(Path(__file__).parents[3] / "bench"))
bench: Any = importlib.import_module("curriculum")
sys.path[:] = _before

SIZE = bench.Size(units=12, held_out=0, batch=4, steps=3, seeds=2)


@pytest.fixture(scope="module")
def records() -> list[Any]:
    words = {"short": 3, "middle": 10, "long": 14}
    rows = [(third, " ".join([str(n), *["card"] * (count - 1)])) for third, count in words.items() for n in range(12)]
    return [bench.record(at, question, "lost card", bench.third_of(question)) for at, (_, question) in enumerate(rows)]


def test_a_third_is_chosen_by_the_question_alone(records: list[Any]) -> None:
    assert Counter(record.fields for record in records) == {(("third", third),): 12 for third in bench.THIRDS}
    assert bench.third_of("card " * 31) is None


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_order_is_a_plan_with_the_same_steps_rates_and_epsilon(seed: int) -> None:
    plans = [bench.planned(SIZE, 1000, bench.phases(order, SIZE, seed)) for order in bench.ORDERS]
    for order, plan in zip(bench.ORDERS, plans, strict=True):
        said = [phase.where.values[0] for phase in plan.phases for _ in range(phase.steps) if phase.where]
        assert said == bench.turns(order, SIZE.steps, seed)
        assert Counter(said) == dict.fromkeys(bench.THIRDS, SIZE.steps)
    assert len({str(plan.rates(plan.attempts)) for plan in plans}) == 1
    assert len({plan.noise_multiplier for plan in plans}) == 1
    assert bench.turns("long first", 3, seed) == bench.turns("short first", 3, seed)[::-1]
    assert len({str(bench.turns("shuffled", 3, other)) for other in range(4)}) > 1


def trained(directory: Path, records: list[Any], order: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the engine was given and the noise, step by step, and the first weights."""
    plan = bench.planned(SIZE, 1000, bench.phases("short first", SIZE, 0))
    batches: list[Any] = []
    noises: list[Any] = []
    first: list[Any] = []

    class Watching(Trainer):
        def run(self) -> Any:
            accumulate, draw = self._engine.accumulate, self._optimizer._noise.draw
            self._engine.accumulate = lambda units: (batches.append(ids(units)), accumulate(units))[1]  # type: ignore
            self._optimizer._noise.draw = lambda count: (noises.append(draw(count)), noises[-1])[1]  # type: ignore
            first.extend(self._adapter.sites[0].a.detach().flatten().tolist())
            return super().run()

    monkeypatch.setattr(bench, "Trainer", Watching)
    bench.Bench(directory, SIZE, records, plan, parameters=1000).train(order, seed)
    return batches, noises, first


def ids(units: Any) -> tuple[Any, ...]:
    """The tokens of a batch."""
    return tuple(record.ids for unit in units for record in unit)


def test_what_is_trained_differs_in_the_order_of_its_batches_alone(
    tiny_model_dir: Path, records: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    each = {order: trained(tiny_model_dir, records, order, 1, monkeypatch) for order in bench.ORDERS}
    batches, noises, weights = zip(*each.values(), strict=True)
    assert len({frozenset(Counter(one).items()) for one in batches}) == 1
    assert len({tuple(one) for one in batches}) == 3
    assert all(len(one) == SIZE.all_steps for one in batches)
    assert all(np.array_equal(noises[0], one) for one in noises)
    assert weights[0] == weights[1] == weights[2]
    other, noise, first = trained(tiny_model_dir, records, "short first", 0, monkeypatch)
    assert set(other) != set(batches[0])
    assert not np.array_equal(noise[0], noises[0][0])
    assert first != weights[0]


def test_the_noise_is_of_the_plans_variance() -> None:
    noise = bench.SameNoise(100.0, seed=3)
    first, second = noise.draw(20_000), noise.draw(20_000)
    assert abs(float(first.std()) - 100) < 2
    assert abs(float(np.corrcoef(first, second)[0, 1])) < 0.03


def test_a_difference_must_show_over_seeds_and_over_records() -> None:
    generator = np.random.default_rng(0)
    control = generator.gamma(2.0, size=(6, 200))
    assert bench.effect(control, control + 0.1 + generator.normal(0, 0.01, (6, 200))).verdict == "worse"
    assert bench.effect(control, control - 0.1 + generator.normal(0, 0.01, (6, 200))).verdict == "better"
    assert bench.effect(control, control + generator.normal(0, 0.3, (6, 200))).verdict == "not distinguishable"
    of_seeds = control + np.array([0.5, -0.3, 0.4, -0.2, 0.3, 0.1])[:, None]  # sure of the records, not of the seeds
    assert bench.effect(control, of_seeds).p < 0.05
    assert bench.effect(control, of_seeds).verdict == "not distinguishable"
    of_records = np.tile(generator.normal(0.02, 1.0, 200), (6, 1))  # sure of the seeds, not of the records
    assert bench.effect(control, control + of_records).low > 0 or bench.effect(control, control + of_records).high < 0
    assert bench.effect(control, control + of_records).verdict == "not distinguishable"
