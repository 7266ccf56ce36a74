"""The Rényi filter: what may still be spent when each choice is made after seeing what came out before.

Summing privacy loss distributions presumes that all mechanisms were fixed beforehand. A run that is planned after an
earlier adapter was seen is not. At one order alpha that was fixed before anything came out, Rényi losses add up
whatever depends on what (Feldman and Zrnic 2021, arXiv 2008.11193, theorem 3.1): as long as their sum stays within
`allowance`, everything together is (alpha, allowance)-Rényi-DP, and so (epsilon, delta)-DP.

**Loss.** Of one Poisson-sampled Gaussian step, mu = (1 - q) N(0, s^2) + q N(1, s^2) against N(0, s^2). Removing a unit
is D(mu || N), adding one is D(N || mu); the first is never smaller (Mironov, Talwar and Zhang 2019, arXiv 1908.10530,
theorem 5), so it is the loss of both. It is an integral of an analytic function that falls off like a Gaussian; the
sum over points that are s / 40 apart differs from it by less than e^-100, and what double precision loses is added.

**Conversion.** (alpha, rho)-Rényi-DP is (epsilon, delta)-DP with

    epsilon = rho + log(1 - 1/alpha) - (log delta + log alpha) / (alpha - 1)

by proposition 12 of Canonne, Kamath and Steinke 2020 (arXiv 2004.00010).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from appliance.errors import ConfigInvalid
from appliance.privacy.accounting import Mechanism, rate_above, round_up_epsilon

ORDERS = (*(tenths / 10 for tenths in range(11, 641)), *map(float, range(65, 513)))
"""The orders among which that of a dataset is chosen. The choice is never changed: sealed datasets rest on it."""

_POINTS = 40  # in one standard deviation of the noise
_REACH = 40.0  # standard deviations to either side; what lies beyond is below e^-800
_RELATIVE, _ABSOLUTE = 1e-9, 1e-12  # far above what the sum loses in double precision


def best_order(epsilon: float, delta: float) -> float:
    """Choose the order for a lifetime cap: the public rule by which it is fixed when a dataset is sealed.

    Among `ORDERS` it is the one with the largest allowance over its square. The loss of Gaussian noise grows with the
    order, that of sampled steps faster; over the square, runs of half the cap lose next to nothing against the
    order that would be best for them, and runs of an eighth lose 7 %.

        >>> best_order(8.0, 1e-5), best_order(3.0, 1e-5)
        (3.1, 5.9)
    """
    return max(ORDERS, key=lambda order: allowance(epsilon, delta, order) / order**2)


def allowance(epsilon: float, delta: float, order: float) -> float:
    """Compute the Rényi loss at `order` that is (epsilon, delta)-DP. Negative where the order suits no such pair.

    Raises:
      ConfigInvalid: delta is not in (0, 1), or the order not above 1.
    """
    return epsilon - _conversion(delta, order)


def epsilon_at(loss: float, delta: float, order: float) -> float:
    """Compute epsilon at `delta` from a Rényi loss at `order`, rounded up to a multiple of 1e-4; 0 for no loss at all.

    Raises:
      ConfigInvalid: delta is not in (0, 1), or the order not above 1.
    """
    return round_up_epsilon(max(0.0, loss + _conversion(delta, order))) if loss > 0 else 0.0


def renyi_loss(mechanisms: Sequence[Mechanism], order: float) -> float:
    """Add up the Rényi losses of all attempts at `order`: an upper bound, for adding and for removing a unit."""
    return math.fsum(
        mechanism.attempts * _step_loss(mechanism.noise_multiplier, rate_above(mechanism.sample_rate), order)
        for mechanism in mechanisms
        if mechanism.attempts
    )


def _conversion(delta: float, order: float) -> float:
    if not 0 < delta < 1 or not order > 1:
        raise ConfigInvalid("a Rényi bound needs an order above 1 and a delta between 0 and 1")
    return math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)


@lru_cache(maxsize=4096)
def _step_loss(sigma: float, rate: float, order: float) -> float:
    moment = (order - 1) * order / (2 * sigma * sigma) if rate == 1 else _log_moment(sigma, rate, order)
    return max(0.0, moment) / (order - 1) * (1 + _RELATIVE) + _ABSOLUTE


def _log_moment(sigma: float, rate: float, order: float) -> float:
    """Integrate (mu / N)^order over N, in logarithms."""
    import numpy as np
    from scipy.special import logsumexp

    step = sigma / _POINTS
    x = np.arange(-_REACH * sigma, order + _REACH * sigma, step)
    ratio = np.logaddexp(math.log1p(-rate), math.log(rate) + (2 * x - 1) / (2 * sigma * sigma))
    density = -x * x / (2 * sigma * sigma) - math.log(sigma) - 0.5 * math.log(2 * math.pi)
    return float(logsumexp(order * ratio + density) + math.log(step))
