"""T1, noise: releases without gradients, and with gradients that are known and taken off, against the claimed law.

The noise is a discrete Gaussian of variance s^2 + 1/12 on a grid far finer than itself (`appliance.privacy.sampler`),
so it is compared with a Gaussian of that variance. Gaussian law and independence are tested, not proved.
"""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from appliance.audit.bounds import by_chance, frequency, normality, products, variance
from appliance.audit.canaries import dense
from appliance.audit.tap import Tap
from appliance.jobs.selftest import Check

_VALUES = 400_000  # noise values that are looked at, at least
_RELEASES = 4  # and releases, at least
_SORTED = 1 << 18
_SHIFTED = 1 << 20
_HEAD = 4096
_TAILS = (3.0, 4.0)


@dataclass(frozen=True, slots=True)
class Sample:
    """Standardised noise of successive releases.

    Attributes:
      values: float32 [releases, P]; even rows are of empty batches, odd rows of filled ones.
      tensors: as of the tap.
      grain: the grid in standard deviations.
    """

    values: NDArray[np.float32]
    tensors: tuple[tuple[str, int, int], ...]
    grain: float

    @property
    def squares(self) -> float:
        """The sum of all squares, as a chi-square variable of `values.size` degrees."""
        return float(sum(np.square(row, dtype=np.float64).sum() for row in self.values))


def collect(tap: Tap) -> Sample:
    """Release production noise through the tap until there are enough values."""
    releases = max(_RELEASES, 2 * math.ceil(_VALUES / tap.parameters / 2))
    norm = 1e3 * max(1.0, tap.clip_norm)
    batch = [[dense(tap.parameters, norm, secrets.randbits(64))] for _ in range(3)]
    known = tap.release(batch, np.zeros(tap.parameters, dtype=np.int64))
    deviation = math.sqrt(tap.noise_std**2 + tap.grid**2 / 12)
    values = np.empty((releases, tap.parameters), dtype=np.float32)
    for number, row in enumerate(values):
        if number % 2:
            np.subtract(tap.release(batch), known, out=row)
        else:
            row[:] = tap.release([])
        row /= deviation
    return Sample(values, tap.tensors, tap.grid / deviation)


def judge(sample: Sample) -> list[Check]:
    """Run all noise checks on a sample."""
    if not np.isfinite(sample.values).all():
        return [by_chance("noise.finite", 0.0, 1)]
    return [
        _variances(sample),
        _total(sample),
        _shape(sample),
        _tails(sample),
        _steps(sample),
        _between_tensors(sample),
        _shifts(sample),
    ]


def _variances(sample: Sample) -> Check:
    """Test each tensor's variance, over empty and over filled batches."""
    starts = np.array([start for _, start, _ in sample.tensors])
    sizes = np.array([stop - start for _, start, stop in sample.tensors])
    found = []
    for half in (sample.values[0::2], sample.values[1::2]):
        squares = sum(np.add.reduceat(np.square(row, dtype=np.float64), starts) for row in half)
        found.append(variance(np.asarray(squares), (sizes * len(half)).astype(np.float64)))
    return by_chance("noise.tensors", float(np.min(found)), 2 * len(sizes))


def _total(sample: Sample) -> Check:
    p = variance(np.array([sample.squares]), np.array([float(sample.values.size)]))
    return by_chance("noise.variance", float(p[0]), 1)


def _shape(sample: Sample) -> Check:
    """Test evenly spaced values of all releases by Kolmogorov-Smirnov."""
    flat = sample.values.reshape(-1)
    chosen = flat[:: max(1, flat.size // _SORTED)].astype(np.float64)
    return by_chance("noise.shape", normality(chosen, 0.5 * sample.grain), 1)


def _tails(sample: Sample) -> Check:
    """Count the values beyond 3 and 4 standard deviations: noise that is cut off leaks where it ends."""
    seen = [sum(int((np.abs(row) > at).sum()) for row in sample.values) for at in _TAILS]
    p = [frequency(n, sample.values.size, 2 * float(ndtr(-at))) for n, at in zip(seen, _TAILS, strict=True)]
    return by_chance("noise.tails", min(p), len(p))


def _steps(sample: Sample) -> Check:
    """Test the correlation of every two releases, and of neighbours and next neighbours taken together."""
    releases, parameters = sample.values.shape
    gram = (sample.values @ sample.values.T).astype(np.float64)
    pairs = gram[np.triu_indices(releases, 1)]
    found = [products(float(np.abs(pairs).max()), parameters)]
    found += [products(float(np.trace(gram, lag)), parameters * (releases - lag)) for lag in (1, 2)]
    return by_chance("noise.steps", min(found), len(pairs) + 2)


def _between_tensors(sample: Sample) -> Check:
    """Test the correlation of every two tensors, over the first values of each."""
    width = min(min(stop - start for _, start, stop in sample.tensors), max(1, _HEAD // len(sample.values)))
    heads = np.concatenate(
        [np.stack([row[start : start + width] for _, start, _ in sample.tensors]) for row in sample.values], axis=1
    )
    pairs = (heads @ heads.T).astype(np.float64)[np.triu_indices(len(heads), 1)]
    largest = float(np.abs(pairs).max()) if len(pairs) else 0.0
    return by_chance("noise.cross-tensor", products(largest, heads.shape[1]), max(1, len(pairs)))


def _shifts(sample: Sample) -> Check:
    """Test the noise against itself at every distance: a keystream that starts again would show."""
    flat = sample.values.reshape(-1)[:_SHIFTED]
    length = 1 << (flat.size - 1).bit_length()
    spectrum = np.fft.rfft(flat, length)
    lags = np.fft.irfft(np.abs(spectrum) ** 2, length)[1 : length // 2]
    return by_chance("noise.shifts", products(float(np.abs(lags).max()), flat.size), len(lags))
