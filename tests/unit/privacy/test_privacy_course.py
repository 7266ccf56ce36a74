"""The course of epsilon that a report draws, and the factor by which odds may rise."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import pytest

from appliance.jobs.plan import Phase, PrivacyPlan, UnitOfPrivacy
from appliance.privacy.accounting import composition, epsilon_pld
from appliance.privacy.course import POINTS, epsilon_curve, odds_bound

PLAN = PrivacyPlan(
    unit=UnitOfPrivacy(), declared_units=1000, expected_batch_size=20, steps=100, spare_steps=0, max_grad_norm=1.0,
    clipping="fixed", noise_multiplier=1.1, epsilon=8.0, delta=1e-6, sampler_delta=1e-9,
    phases=(
        Phase(name="few", steps=2, declared_units=100, expected_batch_size=10),
        Phase(name="all", steps=98, declared_units=1000, expected_batch_size=20),
    ),
)  # fmt: skip


@pytest.mark.parametrize("attempts", [1, 3, 12, 100])
def test_the_course_rises_and_ends_where_the_run_was_charged(attempts: int) -> None:
    course = epsilon_curve(PLAN, attempts)
    assert len(course) == min(POINTS, attempts)
    assert course[-1] == (attempts, epsilon_pld(composition(PLAN, attempts), PLAN.delta - PLAN.sampler_delta))
    assert [place for place, _ in course] == sorted({place for place, _ in course})
    assert [epsilon for _, epsilon in course] == sorted(epsilon for _, epsilon in course)


def test_no_attempt_has_no_course() -> None:
    assert epsilon_curve(PLAN, 0) == []


@pytest.mark.parametrize("epsilon", ["0.0000", "0.0001", "1.0000", "3.8794", "8.0000", "50.0000"])
def test_the_odds_bound_is_never_below_the_power(epsilon: str) -> None:
    bound = odds_bound(epsilon)
    with localcontext(prec=80):
        assert 0 <= Decimal(bound) - Decimal(epsilon).exp() < Decimal("0.0011")
    assert float(bound) == pytest.approx(math.exp(float(epsilon)), rel=1e-3)
