"""The schedule of a plan, read a second time: for the second accountant, so that both do not share a mistake.

The first accountant is told what a plan composes to by `PrivacyPlan.rates`, in stretches. Here each attempt is looked
at by itself: as it was journaled, which is what was sampled, and otherwise by counting the plan's phases down.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from fractions import Fraction

from appliance.jobs.plan import PrivacyPlan
from appliance.privacy.accounting import Mechanism

Made = Mapping[int, tuple[Fraction, float]]
"""Of journaled attempts, by their number: sample rate and noise multiplier."""


def read_again(plan: PrivacyPlan, attempts: int, made: Made | None = None) -> list[Mechanism]:
    """Read what so many attempts of a plan are.

    Args:
      plan: what was planned.
      attempts: how many are accounted for, from the first on.
      made: those that were journaled; the others are read from the plan.
    """
    journaled = made or {}
    found = Counter(journaled.get(n) or (rate_of(plan, n), plan.noise_multiplier) for n in range(1, attempts + 1))
    return [Mechanism(sigma, rate, count) for (rate, sigma), count in found.items()]


def same_steps(one: Iterable[Mechanism], other: Iterable[Mechanism]) -> bool:
    """Tell whether two lists of mechanisms are of the same steps, in whatever stretches and order."""
    return _count(one) == _count(other)


def _count(mechanisms: Iterable[Mechanism]) -> Counter[tuple[float, Fraction]]:
    found: Counter[tuple[float, Fraction]] = Counter()
    for mechanism in mechanisms:
        found[mechanism.noise_multiplier, mechanism.sample_rate] += mechanism.attempts
    return found


def rate_of(plan: PrivacyPlan, attempt: int) -> Fraction:
    """Find the sample rate of the n-th attempt, from 1. Beyond the reservation the largest that the plan has counts."""
    if not plan.phases:
        return Fraction(plan.expected_batch_size, plan.declared_units)
    rates = [Fraction(phase.expected_batch_size, phase.declared_units) for phase in plan.phases]
    if attempt > plan.steps + plan.spare_steps:
        return max(rates)
    for rate, phase in zip(rates, plan.phases, strict=True):
        attempt -= phase.steps
        if attempt <= 0:
            return rate
    return rates[-1]


def follows(plan: PrivacyPlan, made: Made) -> bool:
    """Tell whether all that was journaled is what the plan says of these attempts."""
    return all(mechanism == (rate_of(plan, n), plan.noise_multiplier) for n, mechanism in made.items())
