"""The course of epsilon that a report draws, and the factor by which odds may rise."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from fractions import Fraction

import pytest

from appliance.privacy.accounting import Mechanism, epsilon_pld
from appliance.privacy.course import POINTS, epsilon_curve, odds_bound

DELTA = 1e-6


@pytest.mark.parametrize("attempts", [1, 3, 12, 100])
def test_the_course_rises_and_ends_where_the_run_was_charged(attempts: int) -> None:
    mechanism = Mechanism(1.1, Fraction(1, 50), attempts)
    course = epsilon_curve(mechanism, DELTA)
    assert len(course) == min(POINTS, attempts)
    assert course[-1] == (attempts, epsilon_pld([mechanism], DELTA))
    assert [place for place, _ in course] == sorted({place for place, _ in course})
    assert [epsilon for _, epsilon in course] == sorted(epsilon for _, epsilon in course)


def test_no_attempt_has_no_course() -> None:
    assert epsilon_curve(Mechanism(1.0, Fraction(1, 50), 0), DELTA) == []


@pytest.mark.parametrize("epsilon", ["0.0000", "0.0001", "1.0000", "3.8794", "8.0000", "50.0000"])
def test_the_odds_bound_is_never_below_the_power(epsilon: str) -> None:
    bound = odds_bound(epsilon)
    with localcontext(prec=80):
        assert 0 <= Decimal(bound) - Decimal(epsilon).exp() < Decimal("0.0011")
    assert float(bound) == pytest.approx(math.exp(float(epsilon)), rel=1e-3)
