"""T0 over units: random logical batches of units of one to many records, in all lengths and over many micro-batches.

It is played on a narrow adapter, where a row costs nothing, with as many rows to a micro-batch as the mechanism has.
What a batch should release follows from its gradients and the plan alone; then one unit is taken out, and what the
release moves by must be that unit's own influence, which is at most C.
"""

from __future__ import annotations

import math
import secrets

import numpy as np
from numpy.random import Generator, default_rng

from appliance.audit.bounds import check
from appliance.audit.canaries import Gradient, Pool, influence
from appliance.audit.replay import NORM
from appliance.audit.tap import Doubles, Tap
from appliance.jobs.selftest import Check

_BATCHES = 10
_RECORDS = (1, 1, 1, 2, 3, 4, 6)
_MOST_RECORDS = 512
_TIMES = (0.1, 30.0)


def judge(tap: Tap, max_records: int) -> list[Check]:
    """Play random batches.

    Args:
      tap: of a narrow mechanism.
      max_records: of a unit of the plan; units of so many are among them.
    """
    generator = default_rng(secrets.randbits(128))
    pool = Pool(tap.parameters, generator)
    errors, moved = [], []
    for number in range(_BATCHES):
        batch = _batch(tap, number, max_records, generator, pool)
        lengths = [[int(generator.choice(tap.lengths)) for _ in unit] for unit in batch]
        apart = int(generator.integers(len(batch)))
        without = [n for n in range(len(batch)) if n != apart]
        expected = [influence(tap, np.sum([row.doubles() for row in unit], axis=0)) for unit in batch]
        whole, error = _read(tap, batch, lengths, expected, range(len(batch)))
        rest, other = _read(tap, batch, lengths, expected, without)
        errors += [error, other]
        moved.append(float(np.linalg.norm(whole - rest)) * tap.grid / tap.clip_norm)
    return [
        check("units.exact", max(errors), 1.0, len(errors), passed=max(errors) <= 1),
        check("units.moved", max(moved), 1.0, len(moved), passed=max(moved) <= 1),
    ]


def _batch(tap: Tap, number: int, max_records: int, generator: Generator, pool: Pool) -> list[list[Gradient]]:
    """Make units whose records go from few to more than a group of the engine holds."""
    count = (1, 2, 5, tap.rows + 2)[number % 4]
    records = [int(generator.choice(_RECORDS)) for _ in range(count)]
    if number % 4 < 3:
        records[0] = min(max_records, _MOST_RECORDS) if number % 2 else max(_RECORDS) + number
    else:
        records[-2:] = _RECORDS[-2:]  # beyond the group, not by chance alone
    low, high = np.log(_TIMES)
    norms = [[math.exp(generator.uniform(low, high)) * tap.clip_norm for _ in range(many)] for many in records]
    return [[pool.gradient(norm) for norm in unit] for unit in norms]


def _read(
    tap: Tap, batch: list[list[Gradient]], lengths: list[list[int]], expected: list[Doubles], chosen: list[int] | range
) -> tuple[Doubles, float]:
    """Read the sum of some units, and its distance from what it should be as a multiple of what rounding explains."""
    total, slack = np.zeros(tap.parameters), np.full(tap.parameters, 0.01)
    for n in chosen:
        total += expected[n]
        slack += 0.5 + 2 * NORM * len(batch[n]) * np.abs(expected[n])
    noise = -np.rint(total).astype(np.int64)
    released = tap.release([batch[n] for n in chosen], noise, [lengths[n] for n in chosen])
    rest = np.rint(released.astype(np.float64) / tap.grid)
    error = float(np.max(np.abs(rest + np.rint(total) - total) / slack))
    return rest + np.rint(total), error if math.isfinite(error) else math.inf
