"""Probabilities of what a clean engine could show by chance. All are upper bounds, so thresholds on them are safe.

`CHANCE` is what all checks of one self-test together may cost: a clean engine is refused less than once in a million
runs. It is split evenly over `TESTS` tests, and each test splits its share over what it looks at (Bonferroni). Both
are fixed here, before anything is measured.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammainc, gammaincc, kl_div, ndtr

from appliance.jobs.selftest import Check
from appliance.values import decimal

CHANCE = 1e-6
TESTS = 48
SHARE = CHANCE / TESTS
_LEAST = 1e-30


def variance(squares: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute two-sided p-values of sums of `counts` squared standard normals, by the chi-square law."""
    low, high = gammainc(counts / 2, squares / 2), gammaincc(counts / 2, squares / 2)
    both: NDArray[np.float64] = np.minimum(1.0, 2 * np.minimum(low, high))
    return both


def products(total: float, count: int) -> float:
    """Bound the chance that a sum of `count` products of standard normals is `total` or more in magnitude (Chernoff).

    The products may form chains x1 x2 + x2 x3 + ..., whose moment generating function at t is at most
    ((1 + sqrt(1 - 4 t^2)) / 2)^(-count / 2).
    """
    share = abs(total) / count
    low, high = 0.0, math.pi / 2  # t = sin(angle) / 2; the exponent is least where tan(angle / 2) / cos(angle) = share
    for _ in range(60):
        angle = (low + high) / 2
        low, high = (angle, high) if math.tan(angle / 2) < share * math.cos(angle) else (low, angle)
    exponent = -math.sin(low) / 2 * share - math.log((1 + math.cos(low)) / 2) / 2
    return min(1.0, 2 * math.exp(count * min(0.0, exponent)))


def frequency(seen: int, count: int, rate: float) -> float:
    """Bound the chance that `seen` of `count` events of probability `rate` happen, or fewer or more (Chernoff)."""
    return float(frequencies(np.array([seen]), np.array([count]), np.array([rate]))[0])


def frequencies(seen: ArrayLike, count: ArrayLike, rate: ArrayLike) -> NDArray[np.float64]:
    """Do the same for many at once. Without a trial there is nothing to see, and the chance is 1."""
    counts = np.asarray(count, dtype=np.float64)
    part = np.asarray(seen, dtype=np.float64) / np.maximum(counts, 1)
    rates = np.asarray(rate, dtype=np.float64)
    divergence = kl_div(part, rates) + kl_div(1 - part, 1 - rates)
    both: NDArray[np.float64] = np.minimum(1.0, 2 * np.exp(-counts * divergence))
    return both


def hoeffding(total: float, count: int, most: float) -> float:
    """Bound the chance that a sum is `total` or more in magnitude (Azuma and Hoeffding).

    Args:
      total: a sum of `count` terms, each of mean zero whatever the ones before it are.
      count: of the terms.
      most: what a term is at most in magnitude.
    """
    return min(1.0, 2 * math.exp(-(total**2) / (2 * count * most**2)))


def rate_lower(seen: int, count: int) -> float:
    """Bound a rate from below: what is returned is too large with probability at most SHARE (Chernoff)."""
    low, high, part = 0.0, seen / count, seen / count
    for _ in range(60):
        rate = (low + high) / 2
        divergence = float(kl_div(part, rate) + kl_div(1 - part, 1 - rate))
        low, high = (rate, high) if count * divergence > -math.log(SHARE) else (low, rate)
    return low


def normality(values: NDArray[np.float64], allowance: float) -> float:
    """Bound the chance of this distance from the standard normal, as `uniformity` does. Sorts the values in place."""
    values.sort()
    return uniformity(ndtr(values), allowance)


def uniformity(values: NDArray[np.float64], allowance: float) -> float:
    """Bound the chance of this distance from the uniform law on [0, 1] (Kolmogorov-Smirnov; Massart's constant).

    Args:
      values: the sample.
      allowance: what is taken off the distance because the law is discrete.
    """
    expected = np.sort(values)
    count = len(values)
    steps = np.arange(count + 1) / count
    distance = max(float(np.max(steps[1:] - expected)), float(np.max(expected - steps[:-1])))
    return min(1.0, 2 * math.exp(-2 * count * max(0.0, distance - allowance) ** 2))


def sd_upper(squares: float, count: int) -> float:
    """Bound a standard deviation from above: what is returned is too small with probability at most SHARE.

    Laurent and Massart 2000, lemma 1: chi2 of n degrees falls below n - 2 sqrt(n x) with probability at most exp(-x).
    """
    degrees = count - 2 * math.sqrt(count * -math.log(SHARE))
    return math.sqrt(squares / degrees) if degrees > 0 else math.inf


def by_chance(name: str, p: float, looked_at: int) -> Check:
    """Check that `p`, the least of `looked_at` p-values, is not below its share."""
    bound = SHARE / looked_at
    return check(name, p, bound, looked_at, passed=p >= bound)


def check(name: str, value: float, bound: float, count: int, *, passed: bool) -> Check:
    """Write a check as it is recorded, with nine significant digits."""
    return Check(name=name, passed=passed, value=_text(value), bound=_text(bound), count=count)


def _text(value: float) -> str:
    if not math.isfinite(value):
        return "not finite"
    return decimal(float(f"{value if abs(value) > _LEAST else 0.0:.9g}"))
