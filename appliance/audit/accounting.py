"""The plan's epsilon, worked out a second time from the plan itself: its schedule read anew, its losses composed anew.

What runs is charged by two accountants that get their steps from one function. A fault in it, or in the plan's own idea
of which rate an attempt has, would mislead both. Here neither is asked. The privacy loss of a step is put on a grid
(each value shared by its two neighbours, so that means stay) and composed by FFT. It is an estimate, right to about a
thousandth, and no bound; it has to agree with the bound that is charged as closely as the two accountants do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from scipy.special import ndtr

from appliance.audit.bounds import check
from appliance.audit.tap import Doubles
from appliance.jobs.plan import PrivacyPlan
from appliance.jobs.selftest import Check
from appliance.privacy.accounting import GAP_FLOOR, GAP_RATIO, composition, epsilon_pld

_POINTS = 1 << 19
_CELLS = 1 << 16
_REACH = 14.0  # deviations of the noise


def judge(plan: PrivacyPlan) -> list[Check]:
    """Compare the plan's schedule and its epsilon with what they are worked out to be here."""
    delta = plan.delta - plan.sampler_delta
    accounted = epsilon_pld(composition(plan, plan.attempts), delta)
    found = epsilon(stretches(plan, plan.steps + plan.spare_steps), plan.noise_multiplier, delta, accounted)
    gap = max(GAP_RATIO * min(accounted, found), GAP_FLOOR)
    agreed = abs(accounted - found) <= gap and found <= plan.epsilon + gap
    return [
        check("accounting.schedule", float(_reads_alike(plan)), 1.0, plan.attempts, passed=_reads_alike(plan)),
        check("accounting.epsilon", found, min(plan.epsilon, accounted + gap), plan.attempts, passed=agreed),
    ]


def stretches(plan: PrivacyPlan, attempts: int) -> list[tuple[Fraction, int]]:
    """Read from the plan which rate its first attempts have: (rate, attempts), in order; spare ones have the last."""
    phases = plan.phases
    read = [(Fraction(p.expected_batch_size, p.declared_units), p.steps) for p in phases]
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


def epsilon(schedule: Sequence[tuple[Fraction, int]], noise_multiplier: float, delta: float, about: float) -> float:
    """Compute epsilon at `delta` of Poisson-sampled Gaussian steps, in the worse of both directions.

    Args:
      schedule: (rate, steps).
      noise_multiplier: of all steps.
      delta: at which it is read.
      about: what is expected; it sets how far the losses are followed.
    """
    width = 2 * max(about, 0.1) + math.log(1 / delta) + 20
    return max(_one_way(schedule, noise_multiplier, delta, width, added=added) for added in (False, True))


def _one_way(
    schedule: Sequence[tuple[Fraction, int]], noise_multiplier: float, delta: float, width: float, *, added: bool
) -> float:
    spectrum = np.ones(_POINTS // 2 + 1, dtype=np.complex128)
    for rate, steps in schedule:
        spectrum *= np.fft.rfft(_losses(float(rate), noise_multiplier, width, added=added)) ** steps
    mass = np.maximum(np.fft.irfft(spectrum, _POINTS), 0.0)
    return _read(mass[: _POINTS // 2], 2 * width / _POINTS, delta)


def _losses(rate: float, noise_multiplier: float, width: float, *, added: bool) -> Doubles:
    """Put one step's privacy loss on the grid, [points]; the second half is negative.

    Args:
      rate: q.
      noise_multiplier: sigma; the unit's influence is 1.
      width: the losses that the grid reaches, both ways.
      added: whether the unit was added; else it was removed.
    """
    edges = np.linspace(-_REACH * noise_multiplier, 1 + _REACH * noise_multiplier, _CELLS + 1)
    middle = (edges[1:] + edges[:-1]) / 2
    without, within = (np.diff(ndtr((edges - shift) / noise_multiplier)) for shift in (0.0, 1.0))
    ratio = (2 * middle - 1) / (2 * noise_multiplier**2)
    loss = np.logaddexp(np.log1p(-rate) if rate < 1 else -np.inf, np.log(rate) + ratio)
    mass = without if added else (1 - rate) * without + rate * within
    places = np.clip((-loss if added else loss) * (_POINTS / (2 * width)), -_POINTS / 2, _POINTS / 2 - 2)
    low = np.floor(places)
    share, grid = places - low, np.zeros(_POINTS)
    np.add.at(grid, low.astype(np.int64) % _POINTS, mass * (1 - share))
    np.add.at(grid, (low.astype(np.int64) + 1) % _POINTS, mass * share)
    return grid


def _read(mass: Doubles, step: float, delta: float) -> float:
    """Find the least epsilon at which the mass of losses above it weighs at most delta."""
    losses = step * np.arange(len(mass))
    above = np.cumsum(mass[::-1])[::-1] - mass
    weighed = np.cumsum((mass * np.exp(-losses))[::-1])[::-1] - mass * np.exp(-losses)
    spent = above - np.exp(np.minimum(losses, 700.0)) * weighed
    found = np.flatnonzero(spent <= delta)
    return float(losses[found[0]]) if len(found) else math.inf
