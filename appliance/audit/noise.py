"""T1, noise: what is drawn against the claimed law, and what is released against what was drawn.

The noise is a discrete Gaussian of variance s^2 + 1/12 on a grid far finer than itself (`appliance.privacy.sampler`).
That the release is the sum plus the vector that was drawn, once for each step, is compared value by value; so the law
is tested on the whole numbers. Its shape is tested here, as that of a Gaussian; its last digits, which a Gaussian does
not see, in `integers`. Gaussian law and independence are tested, not proved.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import default_rng
from numpy.typing import NDArray
from scipy.special import ndtr

from appliance.audit.bounds import by_chance, check, frequency, normality, products, variance
from appliance.audit.canaries import Gradient, Pool, far, influence
from appliance.audit.tap import Doubles, Integers, Tap
from appliance.jobs.selftest import Check

_VALUES = 400_000  # noise values that are looked at, at least
_MEASURED = 2_000_000  # of which the deviation is measured: to 0.3 %, and wrong less often than once in 10^7
_RELEASES = 4  # and releases, at least
_SIZES = (0, 2, 0, 5)  # units of the batches in turn: neither noise nor divisor may follow how many there are
_SORTED = 1 << 18
_SHIFTED = 1 << 20
_HEAD = 4096
_FIRST = 256
_DIGITS = 1 << 20
_TAILS = (2.0, 3.0, 4.0, 5.0)
_BLOCK = 256
_STRIDES = (2, 3, 4, 5, 7, 8, 16, 64)


@dataclass(frozen=True, slots=True)
class Sample:
    """Noise of successive releases.

    Attributes:
      values: standardised, float32 [releases, P].
      digits: the whole numbers at some places, int64 [releases, k].
      places: which coordinates these are, ascending, int64 [k]; the first of every tensor is among them.
      deviation: the claimed standard deviation, in grid units.
      tensors: as of the tap.
      apart: by how much a release differed from sum and noise, at most, as a multiple of what rounding explains; or
        not finite, if there was not one vector of noise to a release.
    """

    values: NDArray[np.float32]
    digits: Integers
    places: Integers
    deviation: float
    tensors: tuple[tuple[str, int, int], ...]
    apart: float

    @property
    def squares(self) -> float:
        """The sum of all squares, as a chi-square variable of `values.size` degrees."""
        return float(sum(np.square(row, dtype=np.float64).sum() for row in self.values))

    def measure(self, tap: Tap) -> tuple[float, int]:
        """Give the sum of squares of enough values, and how many: of the releases, and drawn besides."""
        missing = max(0, _MEASURED - self.values.size)
        more = tap.draw(missing) / self.deviation if missing else np.zeros(0)
        return self.squares + float(np.square(more).sum()), self.values.size + missing


def deviation_of(tap: Tap) -> float:
    """State the standard deviation that the noise is claimed to have, in grid units."""
    return math.sqrt((tap.noise_std / tap.grid) ** 2 + 1 / 12)


def collect(tap: Tap) -> Sample:
    """Release production noise through the tap until there are enough values, over batches of different sizes."""
    releases = max(_RELEASES, math.ceil(_VALUES / tap.parameters))
    pool = Pool(tap.parameters, default_rng(secrets.randbits(128)))
    rows = [pool.gradient(far(tap)) for _ in range(max(_SIZES))]
    expected = {size: _total_of(tap, rows[:size]) for size in set(_SIZES)}
    places, deviation, apart = _places(tap, releases), deviation_of(tap), 0.0
    values = np.zeros((releases, tap.parameters), dtype=np.float32)
    digits = np.zeros((releases, len(places)), dtype=np.int64)
    for number in range(releases):
        size = _SIZES[number % len(_SIZES)]
        noise, released = tap.release_noised([[row] for row in rows[:size]])
        if len(noise) != 1 or noise[0].shape != (tap.parameters,):
            return Sample(values, digits, places, deviation, tap.tensors, math.inf)
        apart = max(apart, _apart(released.astype(np.float64) / tap.grid, noise[0] + expected[size], size))
        values[number], digits[number] = noise[0] / deviation, noise[0][places]
    return Sample(values, digits, places, deviation, tap.tensors, apart)


def _total_of(tap: Tap, rows: list[Gradient]) -> Doubles:
    total = np.zeros(tap.parameters)
    for row in rows:
        total += influence(tap, row.doubles())
    return total


def _places(tap: Tap, releases: int) -> Integers:
    """Choose places: the first of every tensor, and evenly spaced ones."""
    chosen = np.zeros(tap.parameters, dtype=np.bool_)
    chosen[:: max(1, tap.parameters * releases // _DIGITS)] = True
    for _, start, stop in tap.tensors:
        chosen[start : min(stop, start + _FIRST)] = True
    return np.flatnonzero(chosen)


def _apart(released: Doubles, expected: Doubles, units: int) -> float:
    slack = 0.01 + 0.55 * units + 2.0**-22 * np.abs(expected)
    error = float(np.max(np.abs(released - expected) / slack))
    return error if math.isfinite(error) else math.inf


def judge(sample: Sample) -> list[Check]:
    """Run all checks of the law on a sample."""
    values = sample.values
    applied = check("noise.applied", sample.apart, 1.0, len(values), passed=sample.apart <= 1)
    if not math.isfinite(sample.apart) or not np.isfinite(values).all():
        return [applied.model_copy(update={"passed": False})]
    return [
        applied,
        _variances(values, sample.tensors),
        _blocks(values),
        _total(sample),
        _shape(values, sample.deviation),
        _tails(values),
        _coordinates(values),
        _steps(values),
        _between_tensors(values, sample.tensors),
        _shifts(values),
    ]


def judge_driven(vectors: Sequence[Integers], deviation: float) -> Check:
    """Test the noise of successive steps of a driven run: variance, shape, correlation, and values that return.

    Two discrete Gaussians of deviation s >= 1 are equal with probability at most 1 / (2 sqrt(pi) s), but for a relative
    error below 2^-50, so that of a coordinate two steps have the same value in fewer columns than that times the pairs.

    Args:
      vectors: of each step, int64 [P].
      deviation: the claimed standard deviation, in grid units.
    """
    values = np.stack(vectors) / deviation
    gram = values @ values.T
    pairs = np.abs(gram[np.triu_indices(len(values), 1)])
    p = [float(variance(np.array([np.trace(gram)]), np.array([float(values.size)]))[0])]
    p += [products(float(pairs.max()), values.shape[1])] if len(pairs) else []
    p += [returning(np.stack(vectors), deviation), normality(values.reshape(-1), 0.5 / deviation)]
    return by_chance("loop.noise", min(p), 3 + len(pairs))


def returning(vectors: Integers, deviation: float) -> float:
    """Bound the chance that so many coordinates have one value in two steps, int64 [steps, P]; fewer are no fault."""
    steps, parameters = vectors.shape
    seen = int((np.diff(np.sort(vectors, axis=0), axis=0) == 0).any(axis=0).sum())
    rate = min(1.0, math.comb(steps, 2) / (2 * math.sqrt(math.pi) * deviation))
    return frequency(seen, parameters, rate) if seen > parameters * rate else 1.0


def _variances(values: NDArray[np.float32], tensors: tuple[tuple[str, int, int], ...]) -> Check:
    """Test each tensor's variance, over empty and over filled batches."""
    starts = np.array([start for _, start, _ in tensors])
    sizes = np.array([stop - start for _, start, stop in tensors])
    found = []
    for half in (values[0::2], values[1::2]):
        squares = sum(np.add.reduceat(np.square(row, dtype=np.float64), starts) for row in half)
        found.append(variance(np.asarray(squares), (sizes * len(half)).astype(np.float64)))
    return by_chance("noise.tensors", float(np.min(found)), 2 * len(sizes))


def _blocks(values: NDArray[np.float32]) -> Check:
    """Test the variance of every run of some coordinates, and of every so manieth coordinate."""
    squares = np.square(values).sum(axis=0, dtype=np.float64)
    whole = len(squares) // _BLOCK
    groups = [squares[: whole * _BLOCK].reshape(whole, _BLOCK).sum(axis=1)] if whole else []
    counts = [np.full(whole, float(_BLOCK))] if whole else []
    for stride in _STRIDES:
        parts = [squares[first::stride] for first in range(min(stride, len(squares)))]
        groups.append(np.array([part.sum() for part in parts]))
        counts.append(np.array([float(len(part)) for part in parts]))
    p = variance(np.concatenate(groups), np.concatenate(counts) * len(values))
    return by_chance("noise.blocks", float(p.min()), len(p))


def _total(sample: Sample) -> Check:
    p = variance(np.array([sample.squares]), np.array([float(sample.values.size)]))
    return by_chance("noise.variance", float(p[0]), 1)


def _shape(values: NDArray[np.float32], deviation: float) -> Check:
    """Test evenly spaced values of all releases by Kolmogorov-Smirnov."""
    flat = values.reshape(-1)
    chosen = flat[:: max(1, flat.size // _SORTED)].astype(np.float64)
    return by_chance("noise.shape", normality(chosen, 0.5 / deviation), 1)


def _tails(values: NDArray[np.float32]) -> Check:
    """Count the values beyond some standard deviations: noise that is cut off leaks where it ends."""
    magnitudes = np.abs(values)
    p = [frequency(int((magnitudes > at).sum()), values.size, 2 * float(ndtr(-at))) for at in _TAILS]
    return by_chance("noise.tails", min(p), len(p))


def _coordinates(values: NDArray[np.float32]) -> Check:
    """Test the least spread of any one coordinate over the releases: some could be left out.

    n normals lie within a range r with probability at most n (r / sqrt(2 pi))^(n - 1): the others are near the least.
    """
    releases, parameters = values.shape
    least = float(np.min(values.max(axis=0) - values.min(axis=0)))
    power = (releases - 1) * math.log(least / math.sqrt(2 * math.pi)) if least > 0 else -math.inf
    p = math.exp(min(0.0, math.log(parameters * releases) + power))
    return by_chance("noise.coordinates", p, 1)


def _steps(values: NDArray[np.float32]) -> Check:
    """Test the correlation of every two releases, and of neighbours and next neighbours taken together."""
    releases, parameters = values.shape
    gram = (values @ values.T).astype(np.float64)
    pairs = gram[np.triu_indices(releases, 1)]
    found = [products(float(np.abs(pairs).max()), parameters)]
    found += [products(float(np.trace(gram, lag)), parameters * (releases - lag)) for lag in (1, 2)]
    return by_chance("noise.steps", min(found), len(pairs) + 2)


def _between_tensors(values: NDArray[np.float32], tensors: tuple[tuple[str, int, int], ...]) -> Check:
    """Test the correlation of every two tensors, over the first values of each."""
    width = min(min(stop - start for _, start, stop in tensors), max(1, _HEAD // len(values)))
    heads = np.concatenate(
        [np.stack([row[start : start + width] for _, start, _ in tensors]) for row in values], axis=1
    )
    pairs = (heads @ heads.T).astype(np.float64)[np.triu_indices(len(heads), 1)]
    largest = float(np.abs(pairs).max()) if len(pairs) else 0.0
    return by_chance("noise.cross-tensor", products(largest, heads.shape[1]), max(1, len(pairs)))


def _shifts(values: NDArray[np.float32]) -> Check:
    """Test the noise against itself at every distance: a keystream that starts again would show."""
    flat = values.reshape(-1)[:_SHIFTED]
    length = 1 << (flat.size - 1).bit_length()
    spectrum = np.fft.rfft(flat, length)
    lags = np.fft.irfft(np.abs(spectrum) ** 2, length)[1 : length // 2]
    return by_chance("noise.shifts", products(float(np.abs(lags).max()), flat.size), len(lags))
