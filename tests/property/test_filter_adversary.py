"""Runs chosen after seeing earlier ones: what an adversary reaches under the former rule, and under this one."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import numpy as np
import pytest

from appliance.errors import BudgetExceeded
from appliance.jobs.plan import UnitOfPrivacy
from appliance.privacy.accounting import Mechanism, epsilon_pld
from appliance.privacy.budget import check_budget
from appliance.privacy.filter import best_order
from appliance.privacy.lifetime import FIRST_SHARE, Cap, Spend
from tests.property.strategies import (
    Array,
    Direction,
    best_of,
    epsilon_reached,
    excess,
    expect,
    losses_of,
    reached,
)

EPSILON, DELTA = 8.0, 1e-5
CAP = Cap(epsilon=EPSILON, delta=DELTA, order=best_order(EPSILON, DELTA), unit=UnitOfPrivacy())

SHAPES = [(0.5, 1), (0.5, 4), (0.7, 8), (1.5, 8), (3.0, 20)]
"""Noise multiplier and attempts of what is chosen second: few loud steps, whose loss has a tail, or many quiet ones."""

# The largest rates with which each shape, after the first mechanism, stays within epsilon 8 by distributions alone.
FORMER = {
    Mechanism(1.0, Fraction(1, 2), 4): ["0.0637", "0.0329", "0.0930", "0.4160", "0.5908"],
    Mechanism(0.6, Fraction(1, 10), 2): ["0.1596", "0.0604", "0.1492", "0.6406", "0.8856"],
}


def spend(name: str, *mechanisms: Mechanism, seen: bool = False, reserved: tuple[Mechanism, ...] = ()) -> Spend:
    """What is asked for, or what has ended and was `seen`."""
    found = Spend(
        run_id=name,
        dataset_id="A",
        unit=UnitOfPrivacy(),
        mechanisms=mechanisms,
        reserved=reserved or mechanisms,
    )
    return dataclasses.replace(found, reserved_at=0, output_at=1, ended_at=2) if seen else found


def admitted(asked: Mechanism, *earlier: Spend) -> bool:
    try:
        check_budget(spend("asked", asked), spends=earlier, overlaps={}, caps={"A": CAP})
    except BudgetExceeded:
        return False
    return True


def loudest(shape: tuple[float, int], *earlier: Spend) -> Mechanism | None:
    """The largest rate, to a hundredth of it, with which this shape is admitted after the earlier spends."""

    def at(rate: int) -> Mechanism:
        return Mechanism(shape[0], Fraction(rate, 10_000), shape[1])

    low, high = 0, 10_001
    while high - low > max(1, low // 100):
        middle = (low + high) // 2
        low, high = (middle, high) if admitted(at(middle), *earlier) else (low, middle)
    return at(low) if low else None


def choices(*earlier: Spend) -> list[Mechanism]:
    """The loudest of each shape that is still admitted."""
    return [found for found in (loudest(shape, *earlier) for shape in SHAPES) if found is not None]


def delta_of(first: Array, seconds: list[Array], epsilon: float) -> float:
    return reached(first, best_of(seconds, excess(epsilon)))


@pytest.mark.parametrize("first", FORMER, ids=lambda m: f"sigma {m.noise_multiplier}")
def test_summed_distributions_are_exceeded_by_who_looks_first(first: Mechanism) -> None:
    """Every path of this strategy is within (8, 1e-5) by distributions. Together they are not, nor within 8.2."""
    seconds = [
        Mechanism(sigma, Fraction(rate), attempts)
        for (sigma, attempts), rate in zip(SHAPES, FORMER[first], strict=True)
    ]
    assert all(epsilon_pld([first, second], DELTA) <= EPSILON for second in seconds)
    law, laws = losses_of(first, "remove"), [losses_of(second, "remove") for second in seconds]
    assert max(delta_of(law, [one], EPSILON) for one in laws) <= DELTA  # none by itself
    assert delta_of(law, laws, EPSILON) > 1.4 * DELTA
    assert epsilon_reached(DELTA, lambda epsilon: delta_of(law, laws, epsilon)) > EPSILON + 0.2
    assert not any(admitted(second, spend("first", first, seen=True)) for second in seconds)


@pytest.mark.parametrize("direction", ["remove", "add"])
@pytest.mark.parametrize(
    "first", [*FORMER, Mechanism(2.0, Fraction(1), 3)], ids=lambda m: f"sigma {m.noise_multiplier}"
)
def test_whoever_looks_first_stays_within_the_cap(first: Mechanism, direction: Direction) -> None:
    seconds = choices(spend("first", first, seen=True))
    assert len(seconds) >= 4
    law, laws = losses_of(first, direction), [losses_of(second, direction) for second in seconds]
    assert delta_of(law, laws, EPSILON) <= DELTA
    if direction == "remove":  # neither is the bound an idle one
        assert epsilon_reached(DELTA, lambda epsilon: delta_of(law, laws, epsilon)) > 0.75 * EPSILON


@pytest.mark.parametrize("direction", ["remove", "add"])
def test_whoever_stops_the_first_run_by_what_it_shows_stays_within_the_cap(direction: Direction) -> None:
    """The first run is admitted by distributions alone. It is ended after any attempt, and what is left is spent."""
    attempts = 10
    whole = Mechanism(1.25, Fraction(1, 2), attempts)
    reserved = (whole,)
    assert epsilon_pld(reserved, FIRST_SHARE * DELTA) <= EPSILON
    assert admitted(whole)
    step = losses_of(Mechanism(1.25, Fraction(1, 2), 1), direction)
    value = excess(EPSILON)
    spent_later = 0
    for made in range(attempts, 0, -1):
        early = spend("first", Mechanism(1.25, Fraction(1, 2), made), seen=True, reserved=reserved)
        seconds = choices(early)
        spent_later += bool(seconds)
        ended = best_of([losses_of(second, direction) for second in seconds], excess(EPSILON))
        value = expect(np.maximum(ended, value), step)
    assert spent_later >= 3  # there was something to choose
    assert value[len(value) // 2] <= DELTA


def test_four_choices_in_a_row_stay_within_the_cap() -> None:
    """Backwards over all orders of up to four small runs of five kinds, as far as the filter admits them."""
    two = [spend(name, Mechanism(1.0, Fraction(1, 4), 2), seen=True) for name in ("r0", "r1")]
    kinds = [Mechanism(kind.noise_multiplier, kind.sample_rate / 2, kind.attempts) for kind in choices(*two)]
    laws = {kind: losses_of(kind, "remove") for kind in kinds}
    known: dict[tuple[Mechanism, ...], Array] = {}

    def value(before: tuple[Mechanism, ...]) -> Array:
        if len(before) == 4:
            return excess(EPSILON)
        if before not in known:
            spends = [spend(f"r{i}", m, seen=True) for i, m in enumerate(before)]
            open_to = [kind for kind in kinds if admitted(kind, *spends)]
            after = [expect(value(tuple(sorted((*before, kind)))), laws[kind]) for kind in open_to]
            known[before] = np.maximum.reduce([excess(EPSILON), *after])
        return known[before]

    total = value(())
    assert len(known) > 20
    assert total[len(total) // 2] <= DELTA
