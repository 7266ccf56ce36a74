"""What noise is worth: from noise multipliers to epsilon (account) and back (calibrate).

The mechanism is the Poisson-subsampled Gaussian with the add-or-remove-one relation. Its privacy loss distribution
is discretised pessimistically ("connect the dots", Doroshenko et al. 2022, arXiv 2207.04380), composed by FFT, and
read in both directions, so the result is an upper bound: every error that remains is added, never subtracted.
Opacus's PRV accountant cross-checks it in the worker; its own stated error is why the two never agree exactly.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

from appliance.errors import ConfigInvalid, GateFailed
from appliance.jobs.plan import PrivacyPlan

LEAST_NOISE = 0.2
"""Noise multipliers below this are refused: their epsilon means nothing and its computation needs gigabytes."""
MOST_NOISE = 2.0**14
MOST_ATTEMPTS = 10**6
GAP_RATIO, GAP_FLOOR = 0.01, 0.012
"""PLD and PRV may differ by 1 % or 0.012, whichever is larger. Opacus's PRV adds `eps_error` (0.01) by itself."""

PRV_ALLOWANCE = 0.005
"""A plan is calibrated this far below its epsilon, so that what PRV says of it, which is charged, stays within it."""

_STEPS_PER_UNIT = 10_000  # epsilon is rounded up to a multiple of 1e-4
_ARITHMETIC_ERROR = 1e-7  # far above what reading epsilon off a million bins in double precision loses
_COARSER = 8.0  # how much wider the intervals are with which calibration begins
_FFT_ERROR_PER_ATTEMPT = 2e-15  # probability; ten times the negative mass seen after composing 300 to 100 000 steps


@dataclass(frozen=True, slots=True, order=True)
class Mechanism:
    """`attempts` Poisson-sampled Gaussian steps at one rate and one noise multiplier.

    Attributes:
      noise_multiplier: standard deviation of the noise over the sensitivity; LEAST_NOISE to MOST_NOISE.
      sample_rate: probability that a unit is in a step's batch, in (0, 1].
      attempts: how many steps were sampled, 0 to MOST_ATTEMPTS.

    Raises:
      ConfigInvalid: a value outside these ranges.
    """

    noise_multiplier: float
    sample_rate: Fraction
    attempts: int

    def __post_init__(self) -> None:
        if not LEAST_NOISE <= self.noise_multiplier <= MOST_NOISE:
            raise ConfigInvalid(f"the noise multiplier must lie between {LEAST_NOISE} and {MOST_NOISE:g}")
        if not 0 < self.sample_rate <= 1:
            raise ConfigInvalid("the sample rate must be above 0 and at most 1")
        if not 0 <= self.attempts <= MOST_ATTEMPTS:
            raise ConfigInvalid(f"the number of attempts must lie between 0 and {MOST_ATTEMPTS}")


def composition(plan: PrivacyPlan, attempts: int, noise_multiplier: float | None = None) -> list[Mechanism]:
    """List what `attempts` attempts of a plan are: a mechanism for each stretch of equal sample rate, in order.

    Args:
      plan: its schedule says which rate each attempt has.
      attempts: how many were made, from the first on.
      noise_multiplier: another one than the plan's.
    """
    sigma = plan.noise_multiplier if noise_multiplier is None else noise_multiplier
    return [Mechanism(sigma, rate, count) for rate, count in plan.rates(attempts)]


def epsilon_pld(mechanisms: Sequence[Mechanism], delta: float) -> float:
    """Compute epsilon at `delta` of all mechanisms together, an upper bound, rounded up to a multiple of 1e-4.

    Equal mechanisms are merged first, so a run that is split in two costs what the whole costs. The result does not
    depend on the order. `math.inf` where no finite epsilon can be shown.

    Raises:
      ConfigInvalid: delta is not in (0, 1).
    """
    merged = _merge(mechanisms, delta)
    return _epsilon(merged, delta, _interval(sum(merged.values())))


def epsilon_rdp(mechanisms: Sequence[Mechanism], delta: float) -> float:
    """Compute epsilon by Rényi DP (Mironov 2017), to be printed beside: looser, an older, independent argument.

    Raises:
      ConfigInvalid: delta is not in (0, 1).
    """
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant()
    with _quiet():
        for (noise_multiplier, rate), attempts in _merge(mechanisms, delta).items():
            accountant.compose(PoissonSampledDpEvent(rate_above(rate), GaussianDpEvent(noise_multiplier)), attempts)
        return round_up_epsilon(float(accountant.get_epsilon(delta))) if any(m.attempts for m in mechanisms) else 0.0


def calibrate(sample_rate: Fraction, attempts: int, epsilon: float, delta: float) -> float:
    """Calibrate attempts of one sample rate, as `calibrate_schedule` does."""
    return calibrate_schedule([(sample_rate, attempts)], epsilon, delta)


def calibrate_schedule(rates: Sequence[tuple[Fraction, int]], epsilon: float, delta: float) -> float:
    """Find the smallest noise multiplier (to about 1e-4 relative) with `epsilon_pld` at most `epsilon`.

    The upper end of the bracket is returned, and checked with the very function that charges.

    Args:
      rates: (sample rate, attempts) pairs that are composed, all with the noise multiplier that is sought.
      epsilon: what they may cost together.
      delta: at this delta.

    Raises:
      ConfigInvalid: impossible arguments, or an epsilon that no noise multiplier up to MOST_NOISE reaches.
    """
    if not 0 < epsilon < math.inf:
        raise ConfigInvalid("epsilon must be a positive number")

    attempts = sum(count for _, count in rates)
    if attempts < 1:
        return LEAST_NOISE

    def mechanisms(noise_multiplier: float) -> list[Mechanism]:
        return [Mechanism(noise_multiplier, rate, count) for rate, count in rates]

    def spent(noise_multiplier: float, interval: float) -> float:
        return _epsilon(_merge(mechanisms(noise_multiplier), delta), delta, interval)

    fine = _interval(attempts)
    guess = _search(lambda x: spent(x, fine * _COARSER), epsilon, _start(rates, epsilon), math.sqrt(2))
    noise_multiplier = _search(lambda x: spent(x, fine), epsilon, guess * 1.0005, 1.02)
    while epsilon_pld(mechanisms(noise_multiplier), delta) > epsilon:
        noise_multiplier *= 1.0001
    return noise_multiplier


def charged_epsilon(pld: float, prv: float) -> float:
    """Take the larger of the two accountants' epsilons.

    Raises:
      GateFailed: they differ by more than 1 % and by more than 0.012, or one of them is not a finite number.
    """
    if not (math.isfinite(pld) and math.isfinite(prv)) or min(pld, prv) < 0:
        raise GateFailed("an accountant gave no finite epsilon")
    if abs(pld - prv) > max(GAP_RATIO * min(pld, prv), GAP_FLOOR):
        raise GateFailed(f"the accountants disagree: PLD says {pld:.4f}, PRV says {prv:.4f}")
    return max(pld, prv)


def _merge(mechanisms: Sequence[Mechanism], delta: float) -> dict[tuple[float, Fraction], int]:
    if not 0 < delta < 1:
        raise ConfigInvalid("delta must lie between 0 and 1")
    merged: Counter[tuple[float, Fraction]] = Counter()
    for mechanism in mechanisms:
        merged[mechanism.noise_multiplier, mechanism.sample_rate] += mechanism.attempts
    return {key: merged[key] for key in sorted(merged) if merged[key]}


def _interval(attempts: int) -> float:
    """Choose the discretisation. Connecting the dots adds about attempts * interval^2 to epsilon: below 2.5e-4 here.

    A power of two that changes rarely, so that composed distributions stay cached and can be convolved.
    """
    return 2.0 ** -(10 + max(0, math.ceil(math.log(max(attempts, 1) / 256, 4))))


def _epsilon(merged: dict[tuple[float, Fraction], int], delta: float, interval: float) -> float:
    attempts = sum(merged.values())
    if not attempts:
        return 0.0
    honest_delta = delta - _FFT_ERROR_PER_ATTEMPT * attempts
    if honest_delta <= 0:
        return math.inf
    return round_up_epsilon(_compose(merged, interval).get_epsilon_for_delta(honest_delta))


def _compose(merged: dict[tuple[float, Fraction], int], interval: float) -> Any:
    parts = [_compose_pld(sigma, rate_above(rate), attempts, interval) for (sigma, rate), attempts in merged.items()]
    total = parts[0]
    for part in parts[1:]:
        total = total.compose(part)
    return total


@lru_cache(maxsize=64)
def _compose_pld(noise_multiplier: float, sample_rate: float, attempts: int, interval: float) -> Any:
    """Compose the privacy loss distribution of `attempts` steps, both directions."""
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

    step = from_gaussian_mechanism(
        noise_multiplier, sampling_prob=sample_rate, value_discretization_interval=interval, pessimistic_estimate=True
    )
    return step.self_compose(attempts)


def rate_above(sample_rate: Fraction) -> float:
    """Round the rate to a double that is never below it."""
    rate = float(sample_rate)
    return math.nextafter(rate, 1.0) if Fraction(rate) < sample_rate else rate


def round_up_epsilon(epsilon: float) -> float:
    """Round up to a multiple of 1e-4, with room for what arithmetic in double precision loses."""
    if not math.isfinite(epsilon):
        return math.inf
    return math.ceil((epsilon + _ARITHMETIC_ERROR) * _STEPS_PER_UNIT) / _STEPS_PER_UNIT


def _start(rates: Sequence[tuple[Fraction, int]], epsilon: float) -> float:
    """Begin about where q sqrt(T) / sigma is epsilon. Far below, the distribution would need gigabytes."""
    spread = math.sqrt(math.fsum(float(rate) ** 2 * count for rate, count in rates))
    return max(1.0, spread / max(1.0, epsilon))


def _search(spent: Callable[[float], float], epsilon: float, start: float, factor: float) -> float:
    """Find the noise multiplier where `spent` crosses `epsilon`: a bracket by steps of `factor`, then Brent's method.

    It starts in the middle because little noise means a wide distribution, which is slow to compose. Epsilon is close
    to a power of the noise multiplier, so in logarithms a few steps suffice.
    """
    from scipy.optimize import brentq

    low = high = min(max(start, LEAST_NOISE), MOST_NOISE)
    while spent(high) > epsilon:
        if high == MOST_NOISE:
            raise ConfigInvalid(
                f"no noise multiplier up to {MOST_NOISE:g} reaches epsilon {epsilon:g}",
                hint="ask for a larger epsilon, fewer steps or a smaller batch",
            )
        low, high = high, min(MOST_NOISE, high * factor**2)
    while low == high or spent(low) <= epsilon:
        if low == LEAST_NOISE:
            return LEAST_NOISE
        high, low = low, max(LEAST_NOISE, low / factor)
    root = brentq(lambda x: math.log(spent(math.exp(x)) / epsilon), math.log(low), math.log(high), xtol=5e-5)
    return min(max(math.exp(root), low), high)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence dp-accounting's note about Rényi orders that it leaves out; leaving one out loosens the bound."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
