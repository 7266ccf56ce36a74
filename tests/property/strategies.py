"""An adversary that chooses each mechanism after seeing what the ones before gave away, and what it really reaches.

Distributions of privacy loss are discretised with every loss rounded **down**, so the delta that a strategy reaches is
never overstated: what exceeds a cap here exceeds it. The best strategy is found backwards: at each loss so far, the
choice with the largest expected excess (1 - e^(epsilon - loss))+ is taken, up to nothing more at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.signal import fftconvolve
from scipy.stats import norm

from appliance.privacy.accounting import Mechanism

STEP = 0.01
REACH = 60.0
Direction = Literal["remove", "add"]
Array = NDArray[np.float64]

LOSSES: Array = np.arange(-round(REACH / STEP), round(REACH / STEP) + 1) * STEP


def losses_of(mechanism: Mechanism, direction: Direction) -> Array:
    """Probability of each of `LOSSES`, rounded down, of all attempts together, under the first of the two laws."""
    one = _one_attempt(float(mechanism.sample_rate), mechanism.noise_multiplier, direction)
    total = np.zeros_like(LOSSES)
    total[len(LOSSES) // 2] = 1.0
    for _ in range(mechanism.attempts):
        total = _convolve(total, one)
    return total


def _one_attempt(rate: float, sigma: float, direction: Direction) -> Array:
    """log((1 - q) + q e^((2x - 1) / 2 s^2)) rises with x; adding a unit is the other law and the negative of it."""
    found = np.zeros_like(LOSSES)
    if direction == "remove":
        x = _outcome(LOSSES, rate, sigma)
        above = (1 - rate) * norm.sf(x / sigma) + rate * norm.sf((x - 1) / sigma)
        found[:-1] = above[:-1] - above[1:]
        found[0] += 1 - above[0]
    else:
        below = norm.cdf(_outcome(-LOSSES, rate, sigma) / sigma)
        found[:-1] = below[:-1] - below[1:]
        found[0] += 1 - below[0]
    return found


def _outcome(losses: Array, rate: float, sigma: float) -> Array:
    ratio = (np.exp(losses) - (1 - rate)) / rate
    x = np.full_like(losses, -np.inf)
    x[ratio > 0] = sigma * sigma * np.log(ratio[ratio > 0]) + 0.5
    return x


def _convolve(one: Array, other: Array) -> Array:
    """What falls off either end of the grid is lost, as if it had cost nothing."""
    middle = len(LOSSES) // 2
    whole = np.maximum(fftconvolve(one, other), 0.0)
    return whole[middle : middle + len(LOSSES)].copy()


def excess(epsilon: float) -> Array:
    """What a total loss contributes to delta at epsilon: the value of stopping at each of `LOSSES`."""
    return np.maximum(0.0, 1 - np.exp(np.minimum(0.0, epsilon - LOSSES)))


def expect(value: Array, law: Array) -> Array:
    """Expected value after a mechanism, for every loss before it. Beyond the grid the value is 0 or nearly 1."""
    padded = np.concatenate([np.zeros(len(LOSSES) // 2), value, np.full(len(LOSSES) // 2, value[-1])])
    return np.maximum(fftconvolve(padded, law[::-1], mode="valid"), 0.0)


def best_of(choices: Sequence[Array], after: Array) -> Array:
    """Value before a choice among mechanisms, or none at all."""
    return np.maximum.reduce([after, *(expect(after, law) for law in choices)])


def reached(first: Array, value: Array) -> float:
    """Delta that a strategy reaches whose first mechanism has this law and whose value after it is known."""
    return float(first @ value)


def epsilon_reached(delta: float, strategy: Callable[[float], float]) -> float:
    """The largest epsilon, to 0.01, at which a strategy still reaches more than delta."""
    low, high = 0.0, 40.0
    while high - low > 0.01:
        middle = (low + high) / 2
        low, high = (middle, high) if strategy(middle) > delta else (low, middle)
    return low
