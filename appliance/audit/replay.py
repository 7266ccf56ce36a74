"""T0, replay: the same noise twice, with and without one unit. The two releases may differ by C at most.

With the noise known, one unit's influence is not estimated but read off. Releases are float32, so what is compared
carries rounding; `_slack` bounds it: three roundings of 2^-24 on each coordinate of each release.
"""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass, field

import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray

from appliance.audit.bounds import check
from appliance.audit.canaries import Canary, dense, directions, moderate, poisoned, records
from appliance.audit.tap import Floats, Integers, Row, Tap, Units
from appliance.jobs.selftest import Check

_NEIGHBOURS = 3  # saturated units beside which a canary is put in
_CROWD = 8
_ALONE = 1 << 24  # parameters that the releases of single canaries may cost in all, besides LEAST of them
_LEAST_ALONE = 6


@dataclass(slots=True)
class Replay:
    """The checks of one tap, and the largest influence of a unit that they saw.

    Attributes:
      moved: the largest movement of a release by one unit, in units of C: a lower bound on the sensitivity.
    """

    tap: Tap
    generator: Generator = field(default_factory=lambda: default_rng(secrets.randbits(128)))
    moved: float = 0.0

    def run(self) -> list[Check]:
        """Run all replay checks."""
        neighbours = [[self._dense(1e3)] for _ in range(_NEIGHBOURS)]
        still = self.tap.release(neighbours, self._silence())
        return [
            *self._joint("replay.directions", neighbours, still, directions(self.tap, self.generator)),
            *self._joint("replay.moderate", neighbours, still, moderate(self.tap, self.generator)),
            self._alone(neighbours, still),
            self._one("replay.dense", neighbours, [self._dense(1e3)], still),
            self._one("replay.unit", neighbours, [self._dense(1e3) for _ in range(3)], still),
            self._not_finite(neighbours, still),
            self._opposed(),
            self._count(),
            self._empty(),
            self._records(),
        ]

    def _joint(self, name: str, base: Units, still: Floats, canaries: list[Canary]) -> list[Check]:
        """Release many canaries in one batch: with disjoint supports, each one's share is read off its coordinates."""
        moved = self.tap.release([*base, *([canary] for canary in canaries)], self._silence())
        slack, change = self._slack(still, moved), moved.astype(np.float64) - still
        shares = [_norm(change[canary.coordinates]) / self.tap.clip_norm for canary in canaries]
        for canary in canaries:
            change[canary.coordinates] = 0
        spilled = _norm(change) / self.tap.clip_norm
        return [
            self._at_most_c(name, max(shares), slack, len(canaries)),
            check(f"{name}.spill", spilled, slack, len(canaries), passed=spilled <= slack),
        ]

    def _alone(self, base: Units, still: Floats) -> Check:
        canaries = directions(self.tap, self.generator)
        wanted = min(len(canaries), max(_LEAST_ALONE, _ALONE // self.tap.parameters))
        chosen = self.generator.permutation(len(canaries))[:wanted]
        found = [self._influence(base, [canaries[at]], still) for at in chosen]
        moved, slack = (max(values) for values in zip(*found, strict=True))
        return self._at_most_c("replay.alone", moved, slack, len(found))

    def _one(self, name: str, base: Units, unit: list[Row], still: Floats) -> Check:
        moved, slack = self._influence(base, unit, still)
        return self._at_most_c(name, moved, slack, 1)

    def _not_finite(self, base: Units, still: Floats) -> Check:
        found = [
            self._influence(base, [poisoned(self.tap.parameters, value)], still) for value in (math.nan, math.inf, 3e38)
        ]
        moved, slack = (max(values) for values in zip(*found, strict=True))
        return self._at_most_c("replay.non-finite", moved, slack, len(found))

    def _opposed(self) -> Check:
        """Set one huge unit against a crowd that points the other way: a clip of sums would let it turn them all."""
        seed = secrets.randbits(64)
        crowd = [[dense(self.tap.parameters, -1e3 * self._scale(), seed)] for _ in range(_CROWD - 1)]
        still = self.tap.release(crowd, self._silence())
        against = [dense(self.tap.parameters, 1e6 * self._scale(), seed)]
        # It comes first, and they are a power of two with it: behind the crowd it could have a micro-batch of its own.
        moved = self.tap.release([against, *crowd], self._silence())
        change = _norm(moved.astype(np.float64) - still) / self.tap.clip_norm
        return self._at_most_c("replay.opposed", change, self._slack(still, moved), 1)

    def _count(self) -> Check:
        """Release N and N + 1 units that point one way, under one noise: neither divisor nor noise may follow N."""
        seed, noise = secrets.randbits(64), self.tap.draw()
        crowd = [[dense(self.tap.parameters, 1e3 * self._scale(), seed)] for _ in range(_CROWD)]
        still = self.tap.release(crowd, noise)
        moved, slack = self._influence(crowd, crowd[0], still, noise)
        return self._at_most_c("replay.count", moved, slack, _CROWD)

    def _empty(self) -> Check:
        """Check that the empty batch releases the noise, and all of it."""
        noise = self.tap.draw()
        released = self.tap.release([], noise)
        expected = (noise * self.tap.grid).astype(np.float32)
        apart = _norm(released.astype(np.float64) - expected) / max(_norm(expected), self.tap.grid)
        return check("replay.empty", apart, 2.0**-21, 1, passed=apart <= 2.0**-21 and _norm(expected) > 0)

    def _records(self) -> Check:
        """Forward and backward pass of synthetic records, D and D plus one."""
        units = [[record] for record in records()]
        noise = self.tap.draw()
        still, moved = self.tap.release_records(units[:-1], noise), self.tap.release_records(units, noise)
        slack, change = self._slack(still, moved), _norm(moved.astype(np.float64) - still) / self.tap.clip_norm
        made = self._at_most_c("replay.records", change, slack, len(units))
        return made.model_copy(update={"passed": made.passed and change > 0})

    def _influence(
        self, base: Units, unit: list[Row], still: Floats, noise: Integers | None = None
    ) -> tuple[float, float]:
        """Measure how far one unit moves a release, and the slack of that figure, both in units of C."""
        moved = self.tap.release([*base, unit], self._silence() if noise is None else noise)
        return _norm(moved.astype(np.float64) - still) / self.tap.clip_norm, self._slack(still, moved)

    def _at_most_c(self, name: str, moved: float, slack: float, count: int) -> Check:
        passed = moved <= 1 + slack  # false for a movement that is not a number
        self.moved = max(self.moved, moved - slack) if passed else self.moved
        return check(name, moved, 1 + slack, count, passed=passed)

    def _dense(self, times: float) -> Row:
        return dense(self.tap.parameters, times * self._scale(), secrets.randbits(64))

    def _scale(self) -> float:
        # Normalised clipping adds 0.01 to a norm: under a tiny C a norm of 1000 C would not be far beyond it.
        return max(1.0, self.tap.clip_norm)

    def _silence(self) -> Integers:
        return np.zeros(self.tap.parameters, dtype=np.int64)

    def _slack(self, *releases: Floats) -> float:
        return sum(2.0**-22 * _norm(release) for release in releases) / self.tap.clip_norm


def _norm(values: NDArray[np.float32] | NDArray[np.float64]) -> float:
    return math.sqrt(float(np.square(values, dtype=np.float64).sum()))
