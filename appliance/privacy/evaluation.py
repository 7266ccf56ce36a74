"""Evaluation on private data as one Gaussian mechanism: what is summed, its sensitivity, its noise, its interval.

A held-out unit of privacy adds one row of integers. For every adapter k that is compared with the base,
d_k is the mean over the unit's records of (loss of the base - loss with the adapter), clipped to [-c, c], and

    row = (u_1 G, ..., u_K G, max_k u_k^2 G / 2),     u_k = d_k / c in [-1, 1],  G = 2^20,

rounded to integers without leaving those ranges. The last entry is what the intervals need. The rows of all units
are summed exactly and independent noise is added to every entry of the sum: one joint release.

**Sensitivity.** Adding or removing a unit changes the sum by its row, whose squared L2 norm is at most
G^2 (K + 1/4). That is exact: the row is made of integers, so no rounding is left to charge. The half weighs the two
parts: a heavier square would make the noise of the differences larger, a lighter one the interval wider.

**Noise.** A discrete Gaussian of variance (sigma L)^2 + 1/12 with L^2 = G^2 (K + 1/4); why 1/12, and what drawing it
costs of delta, is shown in `appliance.privacy.sampler`. Its noise here is far above the 4 grid units needed there.

**Interval.** The gain is stated over the declared number of units N, which is public: c S_k / (G N). With n units of
expected square m = E[u^2], the sum S / G has variance at most n m + t^2, t = sigma L / G, whether n is taken as
fixed or as Poisson. n m itself is known through Q = 2 (last entry) / G, whose noise has standard deviation 2 t and
whose sampling variance is at most n m, because u^4 <= u^2. So M, the largest root of M = Q + z_1 sqrt(4 t^2 + M), is
above n m except with probability 0.005 (one-sided), and

    c / N * (S / G -+ z_2 sqrt(M + t^2))

misses except with probability 0.045 (two-sided): together 95 %, by the union bound. Both use that sums over many
units are nearly normal; where few units matter, the noise, which is exactly that, is the larger part. The uncentred
square over-states the variance, by the square of the mean, so the real coverage is above 95 %. If there are n units
where N were declared, the interval is for n / N times their mean gain: its sign is right whatever was declared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import NormalDist

from appliance.errors import ConfigInvalid
from appliance.privacy.accounting import Mechanism, calibrate, charged_epsilon, epsilon_pld
from appliance.privacy.lifetime import lifetime_delta
from appliance.privacy.sampler import sampler_delta

CLIP_NAT = 0.5
"""Differences of a unit's loss are clipped to this many nat per token, up and down."""

EPSILON = 1.0
MOST_DELTA = 1e-5

GRID = 1 << 20
"""Grid units in one clip."""

_ALPHA_SQUARE, _ALPHA_MEAN = 0.005, 0.045  # what the two parts of the interval may miss; together 5 %


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistic:
    """What is summed over the units.

    Attributes:
      comparisons: how many adapters are compared with the base, K.
      clip_nat: the clip c, nat per token.
    """

    comparisons: int
    clip_nat: float = CLIP_NAT

    @property
    def size(self) -> int:
        """Entries of a row and of the sum."""
        return self.comparisons + 1

    @property
    def squared_sensitivity(self) -> Fraction:
        """Squared L2 norm that no row exceeds, in squared grid units."""
        return GRID * GRID * (self.comparisons + Fraction(1, 4))

    def row(self, differences: Sequence[float]) -> tuple[int, ...]:
        """Count what one unit adds to the sum.

        Args:
          differences: loss of the base minus loss with adapter k, nat per token, for every k; what is not a number
            counts as 0.
        """
        if len(differences) != self.comparisons:
            raise ConfigInvalid("a unit has a loss difference for every comparison")
        parts = [_on_grid(d / self.clip_nat) for d in differences]
        largest = max(abs(part) for part in parts)
        return (*parts, -(-largest * largest // (2 * GRID)))

    def noise_variance(self, noise_multiplier: float) -> Fraction:
        """Find the variance parameter of the discrete Gaussian for every entry, squared grid units, exact."""
        return Fraction(noise_multiplier) ** 2 * self.squared_sensitivity + Fraction(1, 12)


def _on_grid(scaled: float) -> int:
    """Round a number in units of the clip to an integer in [-GRID, GRID], towards zero."""
    return 0 if math.isnan(scaled) else int(min(max(scaled, -1.0), 1.0) * GRID)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationPlan:
    """One evaluation: its statistic, and the mechanism that releases it. All of it is public."""

    statistic: Statistic
    declared_units: int
    noise_multiplier: float
    epsilon: float
    delta: float
    sampler_delta: float

    @property
    def mechanism(self) -> Mechanism:
        """The mechanism as the accountant knows it: every unit takes part, once."""
        return Mechanism(self.noise_multiplier, Fraction(1), 1)

    @property
    def noise_nat(self) -> float:
        """Standard deviation that the noise alone gives a stated gain, nat per token."""
        deviation = math.sqrt(self.statistic.noise_variance(self.noise_multiplier))
        return self.statistic.clip_nat * deviation / GRID / self.declared_units


def make_evaluation_plan(
    *,
    declared_units: int,
    comparisons: int,
    epsilon: float = EPSILON,
    delta: float | None = None,
    clip_nat: float = CLIP_NAT,
) -> EvaluationPlan:
    """Find the least noise with which an evaluation is (epsilon, delta)-DP.

    Args:
      declared_units: units that the data owner declared, N; public.
      comparisons: adapters that are compared with the base.
      epsilon: what the evaluation may spend.
      delta: at most 1e-5 and 1 / (100 declared_units), which is also what None means.
      clip_nat: clip of a unit's difference.

    Raises:
      ConfigInvalid: arguments that no noise can meet.
    """
    if declared_units < 1 or comparisons < 1 or not 0 < clip_nat < math.inf:
        raise ConfigInvalid("an evaluation needs units, an adapter and a positive clip")
    most = lifetime_delta(declared_units, MOST_DELTA)
    target = most if delta is None else delta
    if not 0 < target <= most:
        raise ConfigInvalid(f"delta of an evaluation must be positive and at most {most:.3g}")
    statistic = Statistic(comparisons=comparisons, clip_nat=clip_nat)
    noise_multiplier = calibrate(Fraction(1), 1, epsilon, target)
    sampler = sampler_delta(statistic.size, 1, epsilon, noise_multiplier)
    if sampler > target / 2:
        raise ConfigInvalid("drawing the noise would cost too much of delta", hint="ask for a smaller epsilon")
    if epsilon_pld([Mechanism(noise_multiplier, Fraction(1), 1)], target - sampler) > epsilon:
        noise_multiplier = calibrate(Fraction(1), 1, epsilon, target - sampler)
    return EvaluationPlan(
        statistic=statistic,
        declared_units=declared_units,
        noise_multiplier=noise_multiplier,
        epsilon=epsilon,
        delta=target,
        sampler_delta=sampler,
    )


def charge(plan: EvaluationPlan) -> float:
    """Compute epsilon of the evaluation at delta: the larger of PLD and the closed formula, which must agree.

    Raises:
      GateFailed: they differ by more than the accountants may.
    """
    left = plan.delta - plan.sampler_delta
    return charged_epsilon(epsilon_pld([plan.mechanism], left), epsilon_analytic(plan.noise_multiplier, left))


def epsilon_analytic(noise_multiplier: float, delta: float) -> float:
    """Compute epsilon of one Gaussian release by Balle and Wang 2018 (arXiv 1805.06530), theorem 8."""
    from scipy.optimize import brentq
    from scipy.stats import norm

    def excess(epsilon: float) -> float:
        half, slope = 0.5 / noise_multiplier, epsilon * noise_multiplier
        second = math.exp(epsilon + float(norm.logcdf(-half - slope)))
        return float(norm.cdf(half - slope)) - second - delta

    if excess(0.0) <= 0:
        return 0.0
    high = 1.0
    while excess(high) > 0:
        high *= 2
    return float(brentq(excess, 0.0, high, xtol=1e-10))


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """A stated gain of an adapter over the base with its 95 % interval, nat per token, over the declared units."""

    gain: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval is on one side of 0."""
        return self.low > 0 or self.high < 0


def read_release(plan: EvaluationPlan, released: Sequence[int]) -> tuple[Gain, ...]:
    """Read the gains and intervals that follow from the released sum (post-processing).

    Args:
      plan: the plan of the evaluation.
      released: the noised sum, `plan.statistic.size` integers.
    """
    statistic = plan.statistic
    if len(released) != statistic.size:
        raise ConfigInvalid("the released sum has another size than its plan")
    noise = math.sqrt(statistic.noise_variance(plan.noise_multiplier)) / GRID
    largest = _largest_square(2 * released[-1] / GRID, 2 * noise)
    nat = statistic.clip_nat / plan.declared_units
    half = NormalDist().inv_cdf(1 - _ALPHA_MEAN / 2) * math.sqrt(largest + noise * noise) * nat
    gains = [part / GRID * nat for part in released[:-1]]
    return tuple(Gain(gain=gain, low=gain - half, high=gain + half) for gain in gains)


def _largest_square(square: float, noise: float) -> float:
    """Find the largest root M of M = square + z sqrt(noise^2 + M), at least 0."""
    z = NormalDist().inv_cdf(1 - _ALPHA_SQUARE)
    inside = square + noise * noise + z * z / 4
    return max(0.0, square + z * z / 2 + z * math.sqrt(max(0.0, inside)))
