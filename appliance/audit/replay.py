"""T0, replay: the same noise twice, with and without one unit. The two releases may differ by C at most.

With the noise known, one unit's influence is not estimated but read off. What a unit should add follows from its
gradient and the plan alone (`canaries.influence`), so the replayed noise is minus what is expected: the release is then
small, and float32 shows it to the last whole number. A norm may be off by 2^-19 (float32 sums of 1024 squares, on an
average of many blocks) and each unit by half a unit of the grid on each coordinate; what is beyond that is not what the
plan says.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.random import Generator, default_rng

from appliance.audit.bounds import check
from appliance.audit.canaries import MODERATE, Gradient, Pool, Spikes, far, influence, poisoned
from appliance.audit.tap import Doubles, Floats, Integers, Tap, Units
from appliance.jobs.record import Record
from appliance.jobs.selftest import Check

NORM = 2.0**-19
"""By how much a norm, and with it a unit's influence, may differ from the exact one, relatively."""

_STRIPES = 32
_COLUMNS = 1 << 17  # of a stripe: a column that is left out of a norm of so many changes it by twice NORM
_WORK = 1 << 29  # values that the stripes of one release may cost
_LEAST = 16
_NEIGHBOURS = 3  # saturated units beside which another one is put in
_CROWD = 8
_PILE = 12  # units, at least, that add up to so much on a few coordinates
_MOST = 4096
_BEYOND = 2.0**26
_PILED = 36
_COUPLED = 0.05  # in units of C: what records may move each other by where row counts are not proved


@dataclass(slots=True)
class Replay:
    """The checks of one tap, and the largest influence of a unit that they saw.

    Attributes:
      moved: the largest movement of a release by one unit, in units of C: a lower bound on the sensitivity.
    """

    tap: Tap
    generator: Generator = field(default_factory=lambda: default_rng(secrets.randbits(128)))
    moved: float = 0.0
    pool: Pool = field(init=False)

    def __post_init__(self) -> None:
        """Draw the pool."""
        self.pool = Pool(self.tap.parameters, self.generator)

    def run(self) -> list[Check]:
        """Run all replay checks."""
        neighbours = [[self._far()] for _ in range(_NEIGHBOURS)]
        still = np.rint(self.tap.release(neighbours, self._silence()) / self.tap.grid)
        return [
            *self._stripes(),
            self._one("replay.dense", neighbours, still, [self._gradient(1.7)]),
            self._one("replay.unit", neighbours, still, [self._gradient(t) for t in (0.9, 2.3, 7.0, 0.4, 31.0)]),
            self._alone(),
            self._not_finite(neighbours, still),
            self._opposed(),
            self._sum(),
            self._records(),
        ]

    def _stripes(self) -> list[Check]:
        """Release units with disjoint coordinates, all coordinates together, and read each one's share off its own."""
        count = max(_STRIPES, math.ceil(self.tap.parameters / _COLUMNS))
        count = max(1, min(count, max(_LEAST, _WORK // self.tap.parameters), self.tap.parameters // 2))
        stripes = [self.pool.gradient(self._norm(n), n, count) for n in range(count)]
        expected = np.zeros(self.tap.parameters)
        for n, stripe in enumerate(stripes):
            expected[n::count] = influence(self.tap, stripe.doubles())
        found = self._read([[stripe] for stripe in stripes], np.rint(expected))
        shares = [_norm(found[n::count]) * self.tap.grid / self.tap.clip_norm for n in range(count)]
        errors = [self._error(found[n::count], expected[n::count], 1) for n in range(count)]
        return [self._at_most_c("replay.directions", max(shares), count), self._exact("replay.columns", errors)]

    def _one(self, name: str, base: Units, still: Doubles, unit: Sequence[Gradient]) -> Check:
        """Put one unit beside others whose sum is known."""
        expected = influence(self.tap, np.sum([row.doubles() for row in unit], axis=0))
        moved = self._read([*base, list(unit)], still + np.rint(expected)) - still
        length = _norm(moved) * self.tap.grid / self.tap.clip_norm
        made = self._at_most_c(name, length, 1)
        return made.model_copy(update={"passed": made.passed and self._error(moved, expected, len(unit)) <= 1})

    def _alone(self) -> Check:
        """Release units of one value, at the ends of the first and the last tensor, each in its own release."""
        found = [
            _norm(self._read([[Spikes(np.array([at]), np.full(1, far(self.tap), dtype=np.float32))]], self._nothing()))
            for at in (self.tap.tensors[0][1], self.tap.tensors[-1][2] - 1)
        ]
        return self._at_most_c("replay.alone", max(found) * self.tap.grid / self.tap.clip_norm, len(found))

    def _not_finite(self, base: Units, still: Doubles) -> Check:
        """Put in units that are not finite: not one coordinate may move."""
        units = [[poisoned(self.tap.parameters, value)] for value in (math.nan, math.inf, -math.inf, 3e38)]
        moved = _norm(self._read([*units, *base], still) - still)
        return check("replay.non-finite", moved, 0.0, len(units), passed=moved == 0)

    def _opposed(self) -> Check:
        """Set one huge unit against a crowd that points the other way: a clip of sums would let it turn them all."""
        one = self._far()
        crowd: Units = [[one.times(-1.0)] for _ in range(_CROWD - 1)]
        still = np.rint(self.tap.release(crowd, self._silence()) / self.tap.grid)
        # It comes first, and they are a power of two with it: behind the crowd it could have a micro-batch of its own.
        moved = self._read([[one.times(2.0**10)], *crowd], still) - still
        return self._at_most_c("replay.opposed", _norm(moved) * self.tap.grid / self.tap.clip_norm, 1)

    def _sum(self) -> Check:
        """Pile units up on a few coordinates beyond 2^24: the whole must be exactly its two halves."""
        at = self.generator.choice(self.tap.parameters, min(_PILED, self.tap.parameters), replace=False)
        each = self.tap.clip_norm / self.tap.grid / math.sqrt(len(at))
        rows, expected = [], np.zeros((2, self.tap.parameters))
        for number in range(max(_PILE, min(_MOST, math.ceil(_BEYOND / each)))):
            values = np.abs(self.pool.window(int(self.generator.integers(self.tap.parameters)))[at])
            rows.append(Spikes(at, values * np.float32(2.0 ** round(math.log2(far(self.tap))))))
            expected[number % 2, at] += influence(self.tap, rows[-1].doubles())
        halves = [self._rest([[row] for row in rows[n::2]], expected[n]) for n in range(2)]
        whole = self._rest([[row] for row in rows], np.rint(expected).sum(axis=0))
        apart = _norm(whole - halves[0] - halves[1])
        return check("replay.sum", apart, 0.0, len(rows), passed=apart == 0)

    def _records(self) -> Check:
        """Pass synthetic records through the model: two units by themselves, and both, which must be their sum."""
        units = records()
        parts = [np.rint(self.tap.release_records([u], self._silence()) / self.tap.grid) for u in units]
        rest = np.rint(self.tap.release_records(units, -np.sum(parts, axis=0).astype(np.int64)) / self.tap.grid)
        moved = max(_norm(part + rest) for part in parts) * self.tap.grid / self.tap.clip_norm
        made = self._at_most_c("replay.records", moved, len(units))
        # A part of more than 2^22 was read with a rounding of its own.
        coupled = rest * (np.abs(rest) > 2.0**-22 * np.sum(np.abs(parts), axis=0))
        most = 0.0 if self.tap.proved else _COUPLED
        apart = _norm(coupled) * self.tap.grid / self.tap.clip_norm <= most
        return made.model_copy(update={"passed": made.passed and apart and moved > 0})

    def _read(self, units: Units, expected: Doubles) -> Doubles:
        """Read a release in whole grid units, under a replayed noise that takes what is expected off."""
        return self._rest(units, expected) + expected

    def _rest(self, units: Units, expected: Doubles) -> Doubles:
        released = self.tap.release(units, -np.rint(expected).astype(np.int64))
        return np.rint(released.astype(np.float64) / self.tap.grid)

    def _error(self, moved: Doubles, expected: Doubles, rows: int) -> float:
        """Compare an influence with what it should be, as a multiple of what rounding explains."""
        if not np.isfinite(moved).all():
            return math.inf
        # What follows from the rounding to whole numbers is known, and taken off: equal values are rounded alike.
        near = NORM * rows * float(np.abs(expected).max())
        beyond = moved - np.clip(moved, np.rint(expected - near), np.rint(expected + near))
        along = abs(float(beyond @ expected)) / float(expected @ expected)
        norm = NORM * max(1, rows // 2)
        each = float(np.max(np.abs(moved - expected) / (0.51 + 2 * norm * np.abs(expected))))
        return max(along / norm, each)

    def _exact(self, name: str, errors: Sequence[float]) -> Check:
        return check(name, max(errors), 1.0, len(errors), passed=max(errors) <= 1)

    def _at_most_c(self, name: str, moved: float, count: int) -> Check:
        passed = moved <= 1  # false for a movement that is not a number
        self.moved = max(self.moved, moved) if passed else self.moved
        return check(name, moved, 1.0, count, passed=passed)

    def _norm(self, number: int) -> float:
        """Give norms around C and far beyond it in turn."""
        if number % 2:
            return float(2.0 ** self.generator.uniform(4, 20)) * far(self.tap, 1.0)
        return MODERATE[number // 2 % len(MODERATE)] * self.tap.clip_norm

    def _gradient(self, times: float) -> Gradient:
        return self.pool.gradient(times * self.tap.clip_norm)

    def _far(self) -> Gradient:
        return self.pool.gradient(far(self.tap))

    def _silence(self) -> Integers:
        return np.zeros(self.tap.parameters, dtype=np.int64)

    def _nothing(self) -> Doubles:
        return np.zeros(self.tap.parameters)


def records() -> list[list[Record]]:
    """Write two units of one short synthetic text each, of one length; nobody's data."""
    texts = ("The sky is blue today.", "Water is wet and cold.")
    return [[Record(unit=f"synthetic-{n}", kind="text", parts=(("text", text),))] for n, text in enumerate(texts)]


def _norm(values: Floats | Doubles) -> float:
    return math.sqrt(float(np.square(values, dtype=np.float64).sum()))
