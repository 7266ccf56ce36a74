from __future__ import annotations

import time
from fractions import Fraction

import pytest

from appliance.errors import BudgetExceeded, ConfigInvalid
from appliance.privacy.accounting import Mechanism, epsilon_pld
from appliance.privacy.budget import Cap, Spend, check_budget, lifetime_epsilon

DELTA = 1e-5


def spend(run: str, dataset: str = "A", attempts: int = 10, sigma: float = 1.5, **more: float) -> Spend:
    return Spend(run_id=run, dataset_id=dataset, mechanisms=(Mechanism(sigma, Fraction(1, 2), attempts),), **more)


ONE = epsilon_pld([*spend("r").mechanisms], DELTA)


def test_a_lifetime_composes_runs_and_adds_only_positive_gaps() -> None:
    spends = [spend("r1", epsilon_gap=0.01), spend("r2", sigma=2.0, epsilon_gap=-0.5)]
    composed = epsilon_pld([m for s in spends for m in s.mechanisms], DELTA)
    assert lifetime_epsilon(spends, DELTA) == composed + 0.01
    assert composed < ONE + epsilon_pld(spends[1].mechanisms, DELTA)
    assert lifetime_epsilon([], DELTA) == 0


def test_samplers_use_up_delta() -> None:
    spends = [spend("r1", sampler_delta=4e-6), spend("r2", sampler_delta=1e-6)]
    assert lifetime_epsilon(spends, DELTA) == epsilon_pld([m for s in spends for m in s.mechanisms], 5e-6)
    assert lifetime_epsilon([*spends, spend("r3", sampler_delta=6e-6)], DELTA) == float("inf")


def test_a_run_without_attempts_costs_nothing() -> None:
    assert lifetime_epsilon([spend("r1", attempts=0, epsilon_gap=1.0, sampler_delta=1.0)], DELTA) == 0


def test_a_run_within_the_cap_passes_and_the_next_does_not() -> None:
    caps = {"A": Cap(epsilon=ONE, delta=DELTA)}
    assert check_budget(spend("r1"), spends=[], overlaps={}, caps=caps) == (0.0, ONE)
    with pytest.raises(BudgetExceeded) as refusal:
        check_budget(spend("r2", attempts=1), spends=[spend("r1")], overlaps={}, caps=caps)
    for part in ("dataset A", f"spent epsilon {ONE:.4f}", f"cap {ONE:g}"):
        assert part in refusal.value.message


def test_a_run_is_not_counted_twice_when_it_is_checked_again() -> None:
    caps = {"A": Cap(epsilon=ONE, delta=DELTA)}
    assert check_budget(spend("r1"), spends=[spend("r1")], overlaps={}, caps=caps) == (0.0, ONE)


@pytest.mark.parametrize("overlaps", [{"A": ["B"]}, {"B": ["A"]}])
def test_overlapping_datasets_share_their_budget_whichever_names_the_other(overlaps: dict[str, list[str]]) -> None:
    caps = {"A": Cap(epsilon=ONE, delta=DELTA), "B": Cap(epsilon=ONE, delta=DELTA)}
    with pytest.raises(BudgetExceeded):
        check_budget(spend("r2", "B"), spends=[spend("r1", "A")], overlaps=overlaps, caps=caps)
    check_budget(spend("r2", "B"), spends=[spend("r1", "A")], overlaps={}, caps=caps)


def test_the_middle_of_a_chain_is_protected_though_its_ends_share_nothing() -> None:
    """A and C overlap B only: a run on A is fine for A, but B pays for the runs on A and on C."""
    caps = {name: Cap(epsilon=ONE, delta=DELTA) for name in "ABC"}
    overlaps = {"B": ["A", "C"]}
    with pytest.raises(BudgetExceeded, match="dataset B"):
        check_budget(spend("r2", "A"), spends=[spend("r1", "C")], overlaps=overlaps, caps=caps)
    check_budget(spend("r2", "A"), spends=[spend("r1", "C")], overlaps={"B": ["A"]}, caps=caps)


def test_a_dataset_without_a_cap_is_refused() -> None:
    with pytest.raises(ConfigInvalid):
        check_budget(spend("r1"), spends=[], overlaps={"A": ["B"]}, caps={"A": Cap(epsilon=9.0, delta=DELTA)})


def test_twenty_different_runs_are_composed_quickly() -> None:
    spends = [spend(f"r{i}", sigma=2 + i / 10) for i in range(20)]
    lifetime_epsilon(spends[:1], DELTA)
    begin = time.process_time()
    first = lifetime_epsilon(spends, DELTA)
    assert time.process_time() - begin < 5
    assert lifetime_epsilon(spends, DELTA) == first
