from __future__ import annotations

import math
import time
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import norm

from appliance.errors import ConfigInvalid, GateFailed
from appliance.privacy.accounting import (
    GAP_FLOOR,
    GAP_RATIO,
    LEAST_NOISE,
    Mechanism,
    calibrate,
    charged_epsilon,
    epsilon_pld,
    epsilon_rdp,
)


def prv(mechanism: Mechanism, delta: float) -> float:
    """Opacus' PRV with tight error parameters: its answer lies 0.002 high, by construction."""
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(mechanism.noise_multiplier, float(mechanism.sample_rate), mechanism.attempts)]
    return float(accountant.get_epsilon(delta, eps_error=0.002, delta_error=delta / 1e5))


def exact_delta_of_one_step(sigma: float, rate: float, epsilon: float) -> float:
    """Hockey-stick divergence of one Poisson-sampled Gaussian step, both directions, by quadrature."""
    x = np.linspace(-12 * sigma, 12 * sigma + 1, 2_000_001)
    without, with_it = norm.pdf(x, 0, sigma), (1 - rate) * norm.pdf(x, 0, sigma) + rate * norm.pdf(x, 1, sigma)
    remove = np.trapezoid(np.maximum(with_it - math.exp(epsilon) * without, 0), x)
    add = np.trapezoid(np.maximum(without - math.exp(epsilon) * with_it, 0), x)
    return float(max(remove, add))


@pytest.mark.parametrize(
    ("mechanism", "delta", "expected"),
    [(Mechanism(1.5, Fraction(4, 100), 2250), 1e-5, 6.7688), (Mechanism(3.0, Fraction(1, 10), 512), 1e-6, 3.7697)],
)
def test_golden_pld(mechanism: Mechanism, delta: float, expected: float) -> None:
    epsilon = epsilon_pld([mechanism], delta)
    assert expected <= epsilon <= expected + 5e-4


def test_golden_rdp_and_prv() -> None:
    from opacus.accountants import PRVAccountant

    mechanism = Mechanism(1.5, Fraction(4, 100), 2250)
    assert epsilon_rdp([mechanism], 1e-5) == pytest.approx(7.3291, abs=5e-4)
    accountant = PRVAccountant()
    accountant.history = [(1.5, 0.04, 2250)]
    published = accountant.get_epsilon(1e-5)
    assert published == pytest.approx(6.7791, abs=1e-4)
    assert charged_epsilon(epsilon_pld([mechanism], 1e-5), published) == published


@pytest.mark.parametrize(("sigma", "rate"), [(0.8, 0.1), (1.0, 0.5), (2.5, 1.0), (4.0, 0.3)])
def test_one_step_against_quadrature(sigma: float, rate: float) -> None:
    """An upper bound, and tight: at the returned epsilon the exact delta is at most, at 0.0005 less it is above."""
    delta = 1e-4
    epsilon = epsilon_pld([Mechanism(sigma, Fraction(rate), 1)], delta)
    assert exact_delta_of_one_step(sigma, rate, epsilon) <= delta * (1 + 1e-6)
    assert exact_delta_of_one_step(sigma, rate, epsilon - 5e-4) > delta


@pytest.mark.parametrize("attempts", [1, 4, 60, 2250])
def test_the_full_batch_against_the_closed_form(attempts: int) -> None:
    """At rate 1 the composition is one Gaussian mechanism (Balle and Wang 2018, theorem 8)."""
    sigma, delta = 3.0 * math.sqrt(attempts), 1e-6
    mu = math.sqrt(attempts) / sigma
    epsilon = epsilon_pld([Mechanism(sigma, Fraction(1), attempts)], delta)

    def exact(e: float) -> float:
        return float(norm.cdf(mu / 2 - e / mu) - math.exp(e) * norm.cdf(-mu / 2 - e / mu))

    assert exact(epsilon) <= delta < exact(epsilon - 1e-3)


def test_typical_plans_agree_with_prv(stress_count: Callable[[int, int], int]) -> None:
    """Few large batches, epsilon 1 to 10: what the product refuses (1 % or 0.012) must not be a legitimate plan."""
    from opacus.accountants import PRVAccountant

    grid = [(q, t, e) for q in ("1/10", "3/10", "3/5") for t in (4, 12, 60) for e in (1.0, 3.0, 10.0)]
    chosen = np.random.default_rng(7).permutation(len(grid))[: stress_count(3, len(grid))]
    for q, attempts, epsilon in (grid[i] for i in chosen):
        sigma = calibrate(Fraction(q), attempts, epsilon, 1e-5)
        mechanism = Mechanism(sigma, Fraction(q), attempts)
        pld, tight = epsilon_pld([mechanism], 1e-5), prv(mechanism, 1e-5)
        assert pld <= epsilon
        assert 0 < tight - pld < 0.0025, mechanism
        accountant = PRVAccountant()
        accountant.history = [(sigma, float(Fraction(q)), attempts)]
        assert charged_epsilon(pld, accountant.get_epsilon(1e-5)) - pld < GAP_FLOOR
        assert pld < epsilon_rdp([mechanism], 1e-5)


def test_the_noise_multiplier_is_at_least_five_and_a_half_per_cent_below_rdps() -> None:
    for rate, attempts, epsilon in [
        (Fraction(1, 100), 300, 8.0),
        (Fraction(1, 20), 400, 3.0),
        (Fraction(1, 2), 10, 8.0),
    ]:
        sigma = calibrate(rate, attempts, epsilon, 1e-5)
        assert epsilon_rdp([Mechanism(sigma / (1 - 0.055), rate, attempts)], 1e-5) > epsilon


@pytest.mark.parametrize(
    ("rate", "attempts", "epsilon", "delta"),
    [("1/2", 11, 8.0, 1e-5), ("1/10", 60, 0.5, 1e-7), ("1/25", 2250, 6.0, 1e-5), ("3/5", 4, 10.0, 1e-5)],
)
def test_calibrate_is_quick_and_returns_the_upper_bracket(
    rate: str, attempts: int, epsilon: float, delta: float
) -> None:
    calibrate(Fraction(1, 2), 1, 1.0, 1e-5)  # imports
    begin = time.process_time()
    sigma = calibrate(Fraction(rate), attempts, epsilon, delta)
    assert time.process_time() - begin < 3
    assert epsilon_pld([Mechanism(sigma, Fraction(rate), attempts)], delta) <= epsilon
    assert epsilon_pld([Mechanism(sigma * 0.998, Fraction(rate), attempts)], delta) > epsilon


def test_calibrate_at_the_ends() -> None:
    assert calibrate(Fraction(1, 1000), 1, 100.0, 1e-5) == LEAST_NOISE
    with pytest.raises(ConfigInvalid, match="no noise multiplier"):
        calibrate(Fraction(1), 10, 1e-3, 1e-9)
    for epsilon in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ConfigInvalid):
            calibrate(Fraction(1, 2), 10, epsilon, 1e-5)


@pytest.mark.parametrize("noise", [0.0, -1.0, 0.1, math.nan, math.inf, 1e9])
def test_impossible_noise_is_refused(noise: float) -> None:
    with pytest.raises(ConfigInvalid):
        Mechanism(noise, Fraction(1, 2), 1)


def test_impossible_rates_attempts_and_deltas_are_refused() -> None:
    for rate, attempts in [(Fraction(0), 1), (Fraction(3, 2), 1), (Fraction(-1, 2), 1), (Fraction(1, 2), -1)]:
        with pytest.raises(ConfigInvalid):
            Mechanism(1.0, rate, attempts)
    for delta in (0.0, 1.0, -1e-5, math.nan):
        with pytest.raises(ConfigInvalid):
            epsilon_pld([Mechanism(1.0, Fraction(1, 2), 1)], delta)


def test_no_attempt_costs_nothing_and_a_hopeless_delta_costs_everything() -> None:
    idle = Mechanism(1.0, Fraction(1, 2), 0)
    assert epsilon_pld([], 1e-5) == epsilon_pld([idle], 1e-5) == epsilon_rdp([idle], 1e-5) == 0.0
    assert epsilon_pld([Mechanism(1.0, Fraction(1, 2), 10)], 1e-15) == math.inf


@pytest.mark.parametrize("prv_minus_pld", [0.0, 0.0119, -0.0119])
def test_the_larger_epsilon_is_charged(prv_minus_pld: float) -> None:
    assert charged_epsilon(1.0, 1.0 + prv_minus_pld) == max(1.0, 1.0 + prv_minus_pld)


@pytest.mark.parametrize(("pld", "other"), [(1.0, 1.0121), (1.0121, 1.0), (8.0, 8.081), (8.081, 8.0), (math.inf, 8.0)])
def test_accountants_that_disagree_are_refused(pld: float, other: float) -> None:
    assert GAP_RATIO * 8 > GAP_FLOOR
    with pytest.raises(GateFailed):
        charged_epsilon(pld, other)
    with pytest.raises(GateFailed):
        charged_epsilon(other, math.nan)
