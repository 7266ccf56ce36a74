"""From records to a noised sum: units, exact sums, the real noise; and the paired change on public text."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from appliance.evaluate import release
from appliance.evaluate.public_text import halves
from appliance.evaluate.release import noised_sum, record_losses
from appliance.evaluate.utility import BLOCK, blocks, relative_change
from appliance.privacy.evaluation import GRID, Statistic, make_evaluation_plan
from appliance.train.noise import DiscreteGaussian
from appliance.values import Private
from tests.unit.train.rig import people


def silent(count: int) -> NDArray[np.int64]:
    return np.zeros(count, dtype=np.int64)


def losses(rows: list[list[float]]) -> Private[NDArray[np.float64]]:
    return Private(np.array(rows, dtype=np.float64))


def test_a_unit_adds_the_mean_of_its_records_once() -> None:
    statistic = Statistic(comparisons=1)
    three = losses([[2.0, 1.9], [2.0, 1.7], [3.0, 3.25]])
    found = noised_sum(three, ["u", "u", "v"], statistic, silent)
    mine, other = statistic.row([((2.0 - 1.9) + (2.0 - 1.7)) / 2]), statistic.row([-0.25])
    assert found == tuple(a + b for a, b in zip(mine, other, strict=True))
    again = noised_sum(losses([[3.0, 3.25], [2.0, 1.9], [2.0, 1.7]]), ["v", "u", "u"], statistic, silent)
    assert again == found  # the order of units changes nothing


def test_a_unit_with_many_records_adds_no_more_than_one_with_one() -> None:
    """The sensitivity by replay: D against D without a whole unit, under the same noise."""
    statistic = Statistic(comparisons=2)
    generator = np.random.default_rng(3)
    rows = generator.normal(3, 4, (60, 3))
    units = [f"u{number % 13}" for number in range(60)]
    noise = generator.integers(-(10**7), 10**7, 3)
    whole = noised_sum(Private(rows), units, statistic, lambda count: noise)
    for gone in sorted(set(units)):
        kept = [number for number, unit in enumerate(units) if unit != gone]
        part = noised_sum(Private(rows[kept]), [units[number] for number in kept], statistic, lambda count: noise)
        assert sum((a - b) ** 2 for a, b in zip(whole, part, strict=True)) <= statistic.squared_sensitivity


def test_no_record_at_all_gives_noise_alone() -> None:
    found = record_losses([], lambda record: record, lambda part: np.zeros((len(part), 2)))
    assert noised_sum(found, [], Statistic(comparisons=1), silent) == (0, 0)


def test_a_loss_that_is_not_finite_spoils_only_its_own_unit() -> None:
    statistic = Statistic(comparisons=1)
    found = noised_sum(losses([[math.inf, math.inf], [2.0, 1.9]]), ["a", "b"], statistic, silent)
    assert found == statistic.row([2.0 - 1.9])


def test_records_are_measured_in_their_order_whatever_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    records = people(23)

    def measure(part: list[Any]) -> NDArray[np.float64]:
        return np.array([[len(record.parts[0][1]), int(record.unit[1:])] for record in part], dtype=np.float64)

    whole = record_losses(records, lambda record: record, measure).reveal()
    monkeypatch.setattr(release, "WINDOW", 5)
    assert np.array_equal(record_losses(records, lambda record: record, measure).reveal(), whole)
    assert whole[:, 1].tolist() == list(range(23))


@pytest.mark.usefixtures("fixed_keys")
def test_the_noise_that_is_added_has_the_stated_deviation(stress_count: Callable[[int, int], int]) -> None:
    """Captured: the released sum minus the exact one, with the sampler that is really used."""
    plan = make_evaluation_plan(declared_units=379, comparisons=2)
    noise = DiscreteGaussian(plan.statistic.noise_variance(plan.noise_multiplier))
    three = losses([[2.0, 1.9, 1.8], [2.0, 1.7, 1.6]])
    exact = noised_sum(three, ["u", "v"], plan.statistic, silent)
    count = stress_count(1000, 20_000)
    seen = np.array([noised_sum(three, ["u", "v"], plan.statistic, noise.draw) for _ in range(count)]) - exact
    stated = plan.noise_nat * plan.declared_units * GRID / plan.statistic.clip_nat
    assert stated == pytest.approx(plan.noise_multiplier * 1.5 * GRID, rel=1e-9)
    for column in seen.T:
        assert column.std() == pytest.approx(stated, rel=5 / math.sqrt(2 * count))
        assert abs(column.mean()) < 5 * stated / math.sqrt(count)
    correlation = np.corrcoef(seen.T) - np.eye(3)
    assert np.abs(correlation).max() < 5 / math.sqrt(count)


@pytest.fixture
def tokenizer(tiny_model_dir: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model_dir)


def test_blocks_are_of_the_second_half_and_do_not_touch(tokenizer: Any) -> None:
    first, second = halves()
    ids = tokenizer(second, add_special_tokens=False)["input_ids"]
    found = blocks(tokenizer, 1000)
    assert len(found) == 8
    starts = [next(i for i in range(len(ids)) if tuple(ids[i : i + BLOCK + 1]) == block.ids) for block in found]
    assert all(b - a > BLOCK for a, b in pairwise(starts))
    assert (starts[0], starts[-1]) == (0, len(ids) - BLOCK - 1)
    assert tokenizer.decode(found[3].ids) not in first
    assert len(blocks(tokenizer, 10**9)) == (len(ids) - 1) // BLOCK
    assert len(blocks(tokenizer, 1)) == 2
    assert len(found[0].positions) == BLOCK


def test_the_relative_change_is_paired_by_block(stress_count: Callable[[int, int], int]) -> None:
    generator = np.random.default_rng(4)
    missed, datasets = 0, stress_count(500, 5000)
    for _ in range(datasets):
        before = generator.normal(3.5, 0.4, 63)
        change = relative_change(before, before + generator.normal(0.0035, 0.01, 63))
        assert change.low < change.percent < change.high
        assert change.high - change.low < 0.3  # unpaired it would be 8
        missed += not change.low <= 0.1 <= change.high
    assert missed <= 0.05 * datasets + 3.1 * math.sqrt(datasets * 0.05 * 0.95)
