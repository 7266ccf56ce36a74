"""The Rényi filter's parts: the loss of a step, the conversion, the order. Bounds are held against exact ones."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import norm

from appliance.errors import ConfigInvalid
from appliance.privacy.accounting import Mechanism, epsilon_pld
from appliance.privacy.filter import allowance, best_order, epsilon_at, renyi_loss

STEPS = [
    ("1/10", 0.5),
    ("1/2", 1.0),
    ("1/100", 0.5),
    ("999/1000", 0.2),
    ("1/10000", 10.0),
    ("3/10", 0.2),
    ("1/6", 0.66),
]


def one_step(rate: str, sigma: float, order: float) -> float:
    return renyi_loss([Mechanism(sigma, Fraction(rate), 1)], order)


@pytest.mark.parametrize(("rate", "sigma"), STEPS)
@pytest.mark.parametrize("order", [2, 3, 7, 30])
def test_the_loss_at_whole_orders_is_the_binomial_sum(rate: str, sigma: float, order: int) -> None:
    """Mironov, Talwar and Zhang 2019, section 3.3, for whole orders: exact, and another way than ours."""
    q = float(Fraction(rate))
    terms = [
        math.log(math.comb(order, k)) + k * math.log(q) + (order - k) * math.log1p(-q) + (k * k - k) / (2 * sigma**2)
        for k in range(order + 1)
    ]
    exact = float(logsumexp(terms)) / (order - 1)
    assert exact <= one_step(rate, sigma, order) <= exact * (1 + 1e-8) + 1e-11


@pytest.mark.parametrize(("rate", "sigma"), STEPS)
@pytest.mark.parametrize("order", [1.1, 2.4, 3.1, 17.5])
def test_the_library_never_says_less_and_says_the_same_at_whole_orders(rate: str, sigma: float, order: float) -> None:
    """At orders between, dp-accounting adds the terms of an alternating series up as if all were positive."""
    from dp_accounting.rdp.rdp_privacy_accountant import _compute_rdp_poisson_subsampled_gaussian as theirs

    assert one_step(rate, sigma, order) <= theirs(float(Fraction(rate)), sigma, [order])[0] * (1 + 1e-6) + 1e-11
    whole = theirs(float(Fraction(rate)), sigma, [round(order) + 1])[0]
    assert one_step(rate, sigma, round(order) + 1) == pytest.approx(whole, rel=1e-8, abs=2e-12)


@pytest.mark.parametrize(("rate", "sigma"), STEPS)
@pytest.mark.parametrize("order", [1.5, 3.1, 8.0])
def test_the_loss_covers_adding_a_unit_and_removing_one(rate: str, sigma: float, order: float) -> None:
    q = float(Fraction(rate))
    x = np.linspace(-60 * sigma, order + 1 + 60 * sigma, 400_001)
    without = norm.logpdf(x, 0, sigma)
    with_it = np.logaddexp(math.log1p(-q) + without, math.log(q) + norm.logpdf(x, 1, sigma))
    for one, other in ((with_it, without), (without, with_it)):
        moment = logsumexp(order * one + (1 - order) * other) + math.log(x[1] - x[0])
        assert moment / (order - 1) <= one_step(rate, sigma, order) * (1 + 1e-9) + 1e-11


def test_a_full_batch_is_the_gaussian_and_attempts_add_up() -> None:
    assert one_step("1/1", 2.0, 3.1) == pytest.approx(3.1 / 8, rel=1e-8)
    parts = [Mechanism(2.0, Fraction(1, 3), 5), Mechanism(1.0, Fraction(1, 7), 2), Mechanism(1.0, Fraction(1), 0)]
    expected = 5 * one_step("1/3", 2.0, 3.1) + 2 * one_step("1/7", 1.0, 3.1)
    assert renyi_loss(parts, 3.1) == pytest.approx(expected, rel=1e-12)
    assert renyi_loss([], 3.1) == 0


def test_more_of_anything_loses_more() -> None:
    for order in (1.1, 3.1, 12.0):
        base = one_step("1/10", 1.0, order)
        assert one_step("1/9", 1.0, order) > base
        assert one_step("1/10", 0.99, order) > base
        assert one_step("1/10", 1.0, order + 0.1) > base


@pytest.mark.parametrize("order", [1.5, 3.1, 5.9, 20.0])
@pytest.mark.parametrize("delta", [1e-4, 1e-5, 2e-7])
def test_the_conversion_is_conservative(order: float, delta: float) -> None:
    """For a Gaussian the exact delta at any epsilon is known (Balle and Wang 2018, theorem 8)."""
    for mu in (0.05, 0.3, 1.0, 2.0, 4.0):
        epsilon = epsilon_at(order * mu**2 / 2, delta, order)
        exact = norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu)
        assert exact <= delta


@pytest.mark.parametrize(("rate", "sigma"), [step for step in STEPS if step[1] > 0.3])
def test_the_filter_never_says_less_than_distributions_do(rate: str, sigma: float) -> None:
    for attempts in (1, 7, 60):
        made = [Mechanism(sigma, Fraction(rate), attempts)]
        tight = epsilon_pld(made, 1e-5)
        for order in (1.5, 3.1, 5.9, 20.0):
            assert epsilon_at(renyi_loss(made, order), 1e-5, order) >= tight - 2e-4


def test_what_is_allowed_is_what_comes_to_the_cap() -> None:
    for epsilon, delta, order in ((8.0, 1e-5, 3.1), (3.0, 2e-7, 8.0)):
        allowed = allowance(epsilon, delta, order)
        assert epsilon_at(allowed * (1 - 1e-6), delta, order) == pytest.approx(epsilon, abs=1.01e-4)
        assert epsilon_at(allowed * 1.001, delta, order) > epsilon
    assert epsilon_at(0.0, 1e-5, 3.1) == 0
    assert allowance(1.0, 1e-5, 2.0) < 0  # this order suits no such pair: nothing is admitted


def test_the_order_is_a_public_rule_that_old_datasets_rest_on() -> None:
    """A dataset that was sealed before there was a filter has the order of this rule: the rule cannot change."""
    pairs = [(8.0, 1e-5), (8.0, 2e-7), (3.0, 1e-5), (12.5, 1.6e-5), (1.0, 1e-5), (0.1, 1e-6), (100.0, 1e-5)]
    assert [best_order(*pair) for pair in pairs] == [3.1, 3.8, 5.9, 2.4, 13.7, 126.0, 1.3]


@pytest.mark.parametrize(("delta", "order"), [(0.0, 3.0), (1.0, 3.0), (math.nan, 3.0), (1e-5, 1.0), (1e-5, math.nan)])
def test_impossible_deltas_and_orders_are_refused(delta: float, order: float) -> None:
    with pytest.raises(ConfigInvalid):
        allowance(8.0, delta, order)
