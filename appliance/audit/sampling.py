"""T3, sampling: the batches that the loop deals, against independent coins at the plan's rate.

Batches are dealt by a trainer, as in a run, over as many units as it takes; what is in them is public here. Sizes,
every unit's share, what successive batches have in common: under Poisson sampling all of these are binomial, so each
p-value is exact or a bound. Sampling is tested, not proved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator, default_rng
from scipy.special import bdtr, bdtrc

from appliance.audit.bounds import by_chance, check, frequencies, frequency, uniformity
from appliance.audit.integers import by_key
from appliance.audit.population import Population
from appliance.audit.tap import Doubles, Integers, Tap
from appliance.jobs.plan import PrivacyPlan
from appliance.jobs.selftest import Check

POSITIVES = 300_000
"""How many sampled units are looked at in each phase, if that takes no more than `_COINS` coins."""

_COINS = 1 << 25
_LEAST_COINS = 1 << 20
_PER_UNIT = 40  # batches that a unit is expected in
_BATCHES = (128, 4096)
_PAIRED = 384  # batches of which every two are compared
_ENDS = 0.01
_KEYED = 1 << 12


@dataclass(frozen=True, slots=True)
class Batches:
    """Batches that were dealt alike.

    Attributes:
      units: how many units there were.
      rate: the claimed probability of each.
      drawn: the positions of each batch.
    """

    units: int
    rate: float
    drawn: Sequence[Integers]

    @property
    def coins(self) -> int:
        """How many coins were tossed."""
        return self.units * len(self.drawn)

    @property
    def positives(self) -> int:
        """How many units were in the batches, all together."""
        return sum(len(batch) for batch in self.drawn)


def collect(tap: Tap, plan: PrivacyPlan) -> list[Batches]:
    """Let a trainer deal batches of every phase of the plan."""
    sizes = [_size(float(phase.sample_rate)) for phase in plan.schedule]
    population = Population(plan, float("inf"), 0, most=max(units for units, _ in sizes))
    deal = tap.loop().dealer(plan, population)
    found = []
    for phase, (_, batches) in enumerate(sizes):
        dealt = [deal(phase) for _ in range(batches)]
        truth = len(population.units(phase))
        rate = float(plan.schedule[phase].sample_rate)
        found.append(Batches(truth if all(n == truth for n, _ in dealt) else -1, rate, [drawn for _, drawn in dealt]))
    return found


def _size(rate: float) -> tuple[int, int]:
    """Choose (units, batches): enough coins for the rate, enough batches for each unit."""
    least, most = _BATCHES
    batches = min(most, max(least, round(_PER_UNIT / rate)))
    coins = min(_COINS, max(_LEAST_COINS, round(POSITIVES / rate)))
    return max(64, coins // batches), batches


def judge(name: str, groups: Sequence[Batches]) -> list[Check]:
    """Run all checks on groups of batches.

    Args:
      name: with which the names of the checks begin.
      groups: at least one, each with at least one batch.
    """
    generator = default_rng()
    valid = all(_valid(group) for group in groups)
    if not valid:
        return [check(f"{name}.valid", 1.0, 0.0, len(groups), passed=False)]
    return [
        check(f"{name}.valid", 0.0, 0.0, len(groups), passed=True),
        by_chance(f"{name}.rate", min(frequency(g.positives, g.coins, g.rate) for g in groups), len(groups)),
        _sizes(f"{name}.sizes", groups, generator),
        _units(f"{name}.units", groups),
        _evenness(f"{name}.evenness", groups, generator),
        _overlap(f"{name}.overlap", groups),
        _repeats(f"{name}.repeats", groups),
    ]


def _valid(group: Batches) -> bool:
    """Tell whether all the units could be sampled, and each at most once in a batch."""
    return group.units > 0 and all(
        len(np.unique(batch)) == len(batch) and (not len(batch) or 0 <= batch.min() <= batch.max() < group.units)
        for batch in group.drawn
    )


def _sizes(name: str, groups: Sequence[Batches], generator: Generator) -> Check:
    """Test the law of the sizes, and its two ends by themselves: sizes could be fixed, cut, or vary too much."""
    values = np.concatenate([_uniform(np.array([len(b) for b in g.drawn]), g.units, g.rate, generator) for g in groups])
    ends = [int((values < _ENDS).sum()), int((values > 1 - _ENDS).sum())]
    p = [uniformity(values, 0.0), *(frequency(seen, len(values), _ENDS) for seen in ends)]
    return by_chance(name, min(p), len(p))


def _units(name: str, groups: Sequence[Batches]) -> Check:
    """Test how often each unit was in a batch: some could always be, or never."""
    p = []
    for group in groups:
        counts = _shares(group)
        high, low = bdtrc(counts - 1, len(group.drawn), group.rate), bdtr(counts, len(group.drawn), group.rate)
        p.append(float(np.minimum(np.where(counts > 0, high, 1.0), low).min()))
    return by_chance(name, min(p), 2 * sum(group.units for group in groups))


def _evenness(name: str, groups: Sequence[Batches], generator: Generator) -> Check:
    """Test the law of the units' shares: a shuffle gives all the same, and some sampling prefers half of them."""
    found = []
    for group in groups:
        values = _uniform(_shares(group), len(group.drawn), group.rate, generator)
        found += [uniformity(part, 0.0) for part in (values, values[: len(values) // 2]) if len(part)]
    return by_chance(name, min(found), len(found))


def _overlap(name: str, groups: Sequence[Batches]) -> Check:
    """Test what batches have in common: every two of the first, and neighbours at some distances taken together."""
    found, looked_at = [1.0], 1
    for group in groups:
        sizes, common = _common(group)
        rows, columns = np.triu_indices(len(sizes), 1)
        if len(rows):
            found.append(float(frequencies(common[rows, columns], sizes[rows], group.rate).min()))
            looked_at += len(rows)
        for distance in (1, 2, 3):
            pairs, seen = _neighbours(group, distance)
            found.append(frequency(seen, pairs * group.units, group.rate**2))
            looked_at += 1
    return by_chance(name, min(found), looked_at)


def _repeats(name: str, groups: Sequence[Batches]) -> Check:
    """Count equal batches: two independent ones are equal with a known probability."""
    p, looked_at = [1.0], 1
    for group in groups:
        different = len({np.sort(batch).tobytes() for batch in group.drawn})
        if different < len(group.drawn):
            pairs = len(group.drawn) ** 2 / 2
            p.append(min(1.0, pairs * alike(group.units, group.rate)))
        looked_at += 1
    return by_chance(name, min(p), looked_at)


def alike(units: int, rate: float) -> float:
    """State the probability that two independent batches are equal."""
    return float((1 - 2 * rate * (1 - rate)) ** units)


def entropy(tap: Tap, plan: PrivacyPlan) -> Check:
    """Deal under a key that is known: the same key must give the same batch, and each of its bits another one."""
    phase = plan.schedule[0]
    population = Population(plan, float("inf"), 0, most=_KEYED)
    deal = tap.loop().dealer(plan, population)
    return by_key(
        "sampler.entropy", lambda key: deal(0, key)[1], alike(len(population.units(0)), float(phase.sample_rate))
    )


def _uniform(counts: Integers, trials: int, rate: float, generator: Generator) -> Doubles:
    """Turn binomial counts into uniform numbers: where in its step of the distribution function each lies is drawn."""
    below = np.where(counts > 0, bdtr(counts - 1, trials, rate), 0.0)
    values: Doubles = below + generator.random(len(counts)) * (bdtr(counts, trials, rate) - below)
    return values


def _shares(group: Batches) -> Integers:
    counts: Integers = np.bincount(np.concatenate(group.drawn), minlength=group.units)
    return counts


def _common(group: Batches) -> tuple[Integers, Integers]:
    """Count what every two of the first batches have in common: their sizes [n], and the counts [n, n]."""
    chosen = group.drawn[:_PAIRED]
    held = np.zeros((len(chosen), group.units), dtype=np.float32)
    for row, batch in zip(held, chosen, strict=True):
        row[batch] = 1
    common = np.rint(held @ held.T).astype(np.int64)
    return np.diagonal(common), common


def _neighbours(group: Batches, distance: int) -> tuple[int, int]:
    """Count what disjoint pairs of batches at a distance have in common: (pairs, units)."""
    starts = [n for n in range(len(group.drawn) - distance) if n // distance % 2 == 0]
    sides = [[group.drawn[n + shift] + n * group.units for n in starts] for shift in (0, distance)]
    left, right = (np.concatenate([*side, np.zeros(0, dtype=np.int64)]) for side in sides)
    return len(starts), len(np.intersect1d(left, right, assume_unique=True))
