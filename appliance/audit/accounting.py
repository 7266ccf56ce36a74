"""The plan's epsilon, worked out a second time: its schedule read anew, its losses composed by another accountant.

What runs is charged by two accountants that get their steps from one function. A fault in it, or in the plan's own idea
of which rate an attempt has, would mislead both. Here the plan's fields are read once more, and Opacus' PRV accountant
is asked what they cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from opacus.accountants import PRVAccountant

from appliance.audit.bounds import check
from appliance.jobs.plan import PrivacyPlan
from appliance.jobs.selftest import Check
from appliance.privacy.accounting import GAP_FLOOR, GAP_RATIO, composition, epsilon_pld


def judge(plan: PrivacyPlan) -> list[Check]:
    """Compare the plan's schedule and its epsilon with what they are worked out to be here."""
    delta = plan.delta - plan.sampler_delta
    accounted = epsilon_pld(composition(plan, plan.attempts), delta)
    found = epsilon(stretches(plan, plan.steps + plan.spare_steps), plan.noise_multiplier, delta)
    gap = max(GAP_RATIO * min(accounted, found), GAP_FLOOR)
    alike = _reads_alike(plan)
    agreed = abs(accounted - found) <= gap and found <= plan.epsilon + gap
    return [
        check("accounting.schedule", float(not alike), 0.0, plan.attempts, passed=alike),
        check("accounting.epsilon", found, min(plan.epsilon, accounted) + gap, plan.attempts, passed=agreed),
    ]


def stretches(plan: PrivacyPlan, attempts: int) -> list[tuple[Fraction, int]]:
    """Read from the plan which rate its first attempts have: (rate, attempts), in order; spare ones have the last."""
    read = [(Fraction(p.expected_batch_size, p.declared_units), p.steps) for p in plan.phases]
    read = read or [(Fraction(plan.expected_batch_size, plan.declared_units), plan.steps)]
    read[-1] = (read[-1][0], read[-1][1] + plan.spare_steps)
    found: list[tuple[Fraction, int]] = []
    for rate, steps in read:
        count = min(steps, attempts - sum(n for _, n in found))
        if count > 0 and found and found[-1][0] == rate:
            found[-1] = (rate, found[-1][1] + count)
        elif count > 0:
            found.append((rate, count))
    return found


def epsilon(schedule: Sequence[tuple[Fraction, int]], noise_multiplier: float, delta: float) -> float:
    """Compute epsilon at `delta` of Poisson-sampled Gaussian steps, (rate, steps), by Opacus' PRV accountant."""
    accountant: Any = PRVAccountant()
    accountant.history = [(noise_multiplier, float(rate), steps) for rate, steps in schedule]
    with np.errstate(all="ignore"):  # it takes logarithms of zero where every unit is in every batch
        return float(accountant.get_epsilon(delta=delta))  # it adds 0.01 to what it finds


def _reads_alike(plan: PrivacyPlan) -> bool:
    """Whether the plan says of every number of attempts what `stretches` says, at its ends and around its phases."""
    total, ends, end = plan.steps + plan.spare_steps, {1, plan.steps}, 0
    for phase in plan.schedule:
        end += phase.steps
        ends |= {end - 1, end, end + 1}
    places = sorted(n for n in {*ends, total} if 1 <= n <= total)
    alike = all(plan.rates(n) == stretches(plan, n) for n in places)
    rates = [plan.schedule[plan.phase_at(n)].sample_rate for n in places]
    return plan.attempts == total and alike and rates == [stretches(plan, n)[-1][0] for n in places]
