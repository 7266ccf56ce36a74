"""Two readings of one schedule: a mistake in either makes the accountants disagree."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest

from appliance.errors import GateFailed
from appliance.jobs.plan import Phase, PrivacyPlan, UnitOfPrivacy
from appliance.privacy.accounting import Mechanism, charged_epsilon, composition
from appliance.privacy.schedule import follows, rate_of, read_again, same_steps

HALF, TENTH = Fraction(1, 2), Fraction(1, 10)


def plan(*phases: Phase) -> PrivacyPlan:
    return PrivacyPlan(
        unit=UnitOfPrivacy(), declared_units=1000, expected_batch_size=100, steps=10, spare_steps=2, max_grad_norm=1.0,
        clipping="fixed", noise_multiplier=1.0, epsilon=4.0, delta=1e-5, sampler_delta=1e-18, phases=phases,
    )  # fmt: skip


def phase(name: str, steps: int, units: int) -> Phase:
    return Phase(name=name, steps=steps, declared_units=units, expected_batch_size=100)


FLAT, PHASED = plan(), plan(phase("a", 4, 200), phase("b", 6, 1000))


@pytest.mark.parametrize("planned", [FLAT, PHASED, plan(phase("a", 9, 1000), phase("b", 1, 100))])
def test_both_readings_agree(planned: PrivacyPlan) -> None:
    for attempts in range(16):
        assert same_steps(composition(planned, attempts), read_again(planned, attempts))
        assert not same_steps(composition(planned, attempts + 1), read_again(planned, attempts))


def test_what_was_journaled_is_read_as_it_was_made() -> None:
    made = {1: (HALF, 1.0), 2: (HALF, 0.5), 4: (TENTH, 1.0)}
    found = sorted(read_again(PHASED, 5, made))
    assert found == sorted([Mechanism(1.0, HALF, 2), Mechanism(0.5, HALF, 1), Mechanism(1.0, TENTH, 2)])


def test_a_journal_of_other_steps_than_the_plans_is_told() -> None:
    assert follows(PHASED, {n: (rate_of(PHASED, n), 1.0) for n in (1, 4, 5, 12)})
    assert not follows(PHASED, {5: (HALF, 1.0)})
    assert not follows(PHASED, {4: (HALF, 0.999)})


def _half_of_them(self: PrivacyPlan, attempts: int, after: int = 0) -> list[tuple[Fraction, int]]:
    return [(self.sample_rate, attempts // 2)]


def _lowest(self: PrivacyPlan, attempts: int, after: int = 0) -> list[tuple[Fraction, int]]:
    return [(TENTH, attempts)]


def _without_the_last(self: PrivacyPlan, attempts: int, after: int = 0) -> list[tuple[Fraction, int]]:
    return [(HALF, 4), (TENTH, attempts - 5)]


@pytest.mark.parametrize("mistake", [_half_of_them, _lowest, _without_the_last])
def test_a_mistake_in_the_first_reading_is_refused(
    monkeypatch: pytest.MonkeyPatch, mistake: Callable[..., Any]
) -> None:
    """Both accountants used to be told the same list, so that neither could notice."""
    from appliance.train.accounting import epsilon_prv, spent

    right = spent(PHASED, 12)
    assert charged_epsilon(right.epsilon_pld, right.epsilon_prv) > 0
    second = epsilon_prv(read_again(PHASED, 12), PHASED.delta)
    monkeypatch.setattr(PrivacyPlan, "rates", mistake)
    assert epsilon_prv(read_again(PHASED, 12), PHASED.delta) == second  # the second accountant does not follow it
    with pytest.raises(GateFailed, match="reads otherwise"):
        spent(PHASED, 12)


def test_a_mistake_in_what_was_sampled_is_refused() -> None:
    from appliance.train.accounting import spent

    as_planned = {n: (rate_of(FLAT, n), 1.0) for n in range(1, 13)}
    assert spent(FLAT, 12, as_planned) == spent(FLAT, 12)
    for wrong in ((2 * TENTH, 1.0), (TENTH, 0.999)):
        with pytest.raises(GateFailed, match="reads otherwise"):
            spent(FLAT, 12, as_planned | {7: wrong})
