"""What a step of the loop should have done: the records of its batch, their sum, the noise, the divisor, the weights.

All of it is worked out anew from the plan and from what was seen, never asked of what is tested.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from appliance.audit.canaries import influence
from appliance.audit.population import Population
from appliance.audit.replay import NORM
from appliance.audit.tap import Claim, Doubles, Floats, Integers, Life, Taken
from appliance.jobs.plan import PrivacyPlan

STEP = ("attempt", "sample", "noise", "save release", "release", "apply")
"""What has to happen in a step, once each and in this order."""

_FOLLOWED = 0.02  # of a learning rate: what rounding may make of weights that follow from releases


@dataclass(frozen=True, slots=True)
class Script:
    """A second reading of a plan: the phase, rate and batch of each attempt, counted from 1."""

    plan: PrivacyPlan

    def phase(self, attempt: int) -> int:
        """Find the phase of an attempt. Attempts beyond the steps belong to the last."""
        left = attempt
        for number, phase in enumerate(self.plan.schedule):
            left -= phase.steps
            if left <= 0:
                return number
        return len(self.plan.schedule) - 1

    def rate(self, attempt: int) -> Fraction:
        """State the probability of a unit to be in the batch of an attempt."""
        phase = self.plan.schedule[self.phase(attempt)]
        return Fraction(phase.expected_batch_size, phase.declared_units)

    def batch(self, attempt: int) -> int:
        """State by what the release of an attempt is divided."""
        return self.plan.schedule[self.phase(attempt)].expected_batch_size

    def history(self, first: int, last: int) -> list[tuple[float, float, int]]:
        """List (noise multiplier, rate, count) of the attempts from `first` to `last`, as an accountant notes them."""
        found: list[tuple[float, float, int]] = []
        for attempt in range(first, last + 1):
            rate = float(self.rate(attempt))
            if found and found[-1][1] == rate:
                found[-1] = (*found[-1][:2], found[-1][2] + 1)
            else:
                found.append((self.plan.noise_multiplier, rate, 1))
        return found


class Truth:
    """What steps of a drive should have released.

    Args:
      claim: of the mechanism that is driven.
      plan: of the drive.
      population: what it is driven with.
    """

    def __init__(self, claim: Claim, plan: PrivacyPlan, population: Population) -> None:
        self._claim, self._population, self.script = claim, population, Script(plan)
        self._units = [population.units(phase) for phase in range(len(plan.schedule))]

    def units(self, phase: int) -> int:
        """Count the units of a phase."""
        return len(self._units[phase])

    def error(self, ranks: Sequence[Taken]) -> float:
        """Compare a step's release with the sum of its batch and the noise; a multiple of what rounding explains.

        Not finite where the step did not compute the whole units of one batch, each record once, or did not draw one
        vector of noise.

        Args:
          ranks: the step as each rank saw it, the first rank first.
        """
        main = ranks[0]
        phase = self.script.phase(main.attempts)
        if main.gradient is None or [len(taken.noise) for taken in ranks] != [1, *[0] * (len(ranks) - 1)]:
            return math.inf
        units = self._batch(ranks, phase)
        if units is None or main.noise[0].shape != main.gradient.shape:
            return math.inf
        total, slack = main.noise[0].astype(np.float64), np.full(len(main.gradient), 0.01)
        for unit in units:
            rows = [self._population.row(number, len(total)).doubles() for number in unit]
            if rows:
                added = influence(self._claim, np.sum(rows, axis=0))
                total += added
                slack += 0.5 + 2 * NORM * len(rows) * np.abs(added)
        apart = np.abs(in_units(main.gradient, self.script.batch(main.attempts), self._claim.grid) - total)
        error = float(np.max(apart / (slack + 2.0**-22 * np.abs(total))))
        return error if math.isfinite(error) else math.inf

    def _batch(self, ranks: Sequence[Taken], phase: int) -> list[list[int]] | None:
        """List the trained records of every unit of the batch; None if it is not a batch of whole units."""
        samples = ranks[0].samples
        if len(samples) != 1 or any(taken.samples for taken in ranks[1:]) or samples[0][0] != self.units(phase):
            return None
        dealt = np.concatenate([part for taken in ranks for part in taken.dealt])
        if sorted(dealt.tolist()) != sorted(samples[0][1].tolist()):
            return None
        encoded = dict(pair for taken in ranks for pair in taken.encoded)
        if sum(len(taken.encoded) for taken in ranks) != len(encoded):
            return None
        whole = [unit for unit in self._units[phase] if all(number in encoded for number in unit)]
        trained = [number for number, supervised in encoded.items() if supervised]
        computed = Counter(number for taken in ranks for number in taken.computed)
        if len(whole) != len(dealt) or sum(map(len, whole)) != len(encoded) or computed != Counter(trained):
            return None
        return [[number for number in unit if encoded[number]] for unit in whole]


def in_units(gradient: Floats, batch: int, grid: float) -> Doubles:
    """Turn what the inner optimiser was given back into grid units."""
    return gradient.astype(np.float64) * (batch / grid)


def is_a_step(order: Sequence[str]) -> bool:
    """Tell whether all of a step happened, once and in order, after what the step before left to be done."""
    return tuple(order[-len(STEP) :]) == STEP and not set(STEP) & set(order[: -len(STEP)])


def follows(start: Floats, steps: Sequence[Taken], weights: Floats | None) -> bool:
    """Tell whether weights follow from what the inner optimiser was given, by AdamW whose settings never change."""
    if weights is None or any(taken.settings != steps[0].settings for taken in steps) or len(steps[0].settings) != 1:
        return False
    settings: dict[str, Any] = steps[0].settings[0]
    lr, (first, second), eps = float(settings["lr"]), settings["betas"], float(settings["eps"])
    weight, mean, square = start.astype(np.float64), np.zeros(len(start)), np.zeros(len(start))
    for number, taken in enumerate(steps, start=1):
        gradient = np.zeros(len(start)) if taken.gradient is None else taken.gradient.astype(np.float64)
        mean = first * mean + (1 - first) * gradient
        square = second * square + (1 - second) * gradient**2
        weight -= lr * (mean / (1 - first**number)) / (np.sqrt(square / (1 - second**number)) + eps)
    return bool(np.all(np.abs(weight - weights) <= _FOLLOWED * lr + 2.0**-21 * len(steps) * np.abs(weight)))


def match(life: Life, forced: Sequence[Integers], script: Script, grid: float) -> list[int]:
    """Find which release each step of a life applied: its number from 0, -1 for none; under any batch of the plan."""
    batches = {phase.expected_batch_size for phase in script.plan.schedule}
    found = []
    for taken in life.steps:
        ways = [in_units(taken.gradient, batch, grid) for batch in batches] if taken.gradient is not None else []
        equal = (n for n, target in enumerate(forced) for way in ways if _close(way, target))
        found.append(next(equal, -1))
    return found


def _close(values: Doubles, target: Integers) -> bool:
    return len(values) == len(target) and bool(np.all(np.abs(values - target) <= 0.01 + 2.0**-22 * np.abs(target)))
