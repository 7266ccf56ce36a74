"""Gradients of the self-test: irregular, of any norm, and the same in float32 as in bfloat16.

Norms that are round numbers hide what a norm in low precision does. So values are cut from a pool of random signs and
mantissas; what they add up to is as irregular as the gradients of records.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from appliance.audit.tap import Claim, Doubles, Floats, Integers, Row
from appliance.privacy.sampler import GUARD

MODERATE = (0.3, 0.5, 0.9, 0.99, 1.01, 1.1, 1.5, 1.99, 3.0, 9.0, 30.0, 200.0)
"""Norms in units of C at which a clip that starts too late or too early would show."""

_STABILITY = 0.01  # what normalised clipping adds to a norm
_MANTISSAS = 4  # so many sixteenths above one: squares that differ little, so that no value hides behind another
_QUARTERS = 4


@dataclass(frozen=True, slots=True)
class Gradient:
    """Every `step`-th value of `values` from `first` on, times `scale`, and zeros between.

    Attributes:
      values: float32 [P].
    """

    values: Floats
    scale: float
    first: int = 0
    step: int = 1

    def __call__(self, out: Floats) -> None:
        """Write the gradient."""
        np.multiply(self.values[self.first :: self.step], np.float32(self.scale), out=out[self.first :: self.step])

    def doubles(self) -> Doubles:
        """Give the values on its support, float64."""
        return self.values[self.first :: self.step].astype(np.float64) * self.scale

    def times(self, factor: float) -> Gradient:
        """Multiply it by a power of two, or turn it round."""
        return Gradient(self.values, self.scale * factor, self.first, self.step)


class Pool:
    """Where the values of gradients come from.

    Args:
      parameters: P.
      generator: what they are drawn with.
    """

    def __init__(self, parameters: int, generator: Generator) -> None:
        sixteenths = 1 + np.arange(2 * _MANTISSAS) // 2 / 16
        table = np.where(np.arange(2 * _MANTISSAS) % 2, -sixteenths, sixteenths).astype(np.float32)
        self._values = table[np.frombuffer(generator.bytes(2 * parameters), dtype=np.uint8) & (2 * _MANTISSAS - 1)]
        self._parameters, self._generator = parameters, generator

    def window(self, start: int = 0) -> Floats:
        """Give P of its values, from `start` below P on."""
        found: Floats = self._values[start : start + self._parameters]
        return found

    def gradient(self, norm: float, first: int = 0, step: int = 1) -> Gradient:
        """Cut a gradient of about this norm."""
        return cut(self.window(int(self._generator.integers(self._parameters))), norm, self._generator, first, step)


def cut(values: Floats, norm: float, generator: Generator, first: int = 0, step: int = 1) -> Gradient:
    """Scale values to about this norm, within a factor of 1.8, by so few bits that they stay the same in bfloat16."""
    squares = float(np.square(values[first::step], dtype=np.float64).sum())
    exponent = round(math.log2(norm / math.sqrt(squares)))
    return Gradient(values, 2.0**exponent * (1 + int(generator.integers(_QUARTERS)) / _QUARTERS), first, step)


def far(claim: Claim, times: float = 1e3) -> float:
    """Give a norm far beyond the clip. Normalised clipping adds to a norm: a multiple of a tiny C would not be far."""
    return times * max(1.0, claim.clip_norm)


def influence(claim: Claim, gradient: Doubles) -> Doubles:
    """Compute what a unit with this gradient adds to the sum, in grid units, before it is rounded to whole ones."""
    norm, bound = float(np.sqrt(np.square(gradient).sum())), claim.clip_norm * (1 - GUARD)
    if claim.clipping == "normalised":
        return gradient * (bound / (norm + _STABILITY) / claim.grid)
    return gradient * (min(1.0, bound / norm if norm else 1.0) / claim.grid)


@dataclass(frozen=True, slots=True)
class Spikes:
    """A gradient that is zero but on a few coordinates.

    Attributes:
      at: positions, int64 [k].
      values: float32 [k].
    """

    at: Integers
    values: Floats

    def __call__(self, out: Floats) -> None:
        """Write the gradient."""
        out[self.at] = self.values

    def doubles(self) -> Doubles:
        """Give the values on its support, float64."""
        return self.values.astype(np.float64)


def poisoned(parameters: int, value: float) -> Row:
    """Make a gradient with one value that is not a number or not finite."""

    def fill(out: Floats) -> None:
        out[:] = 1.0
        out[parameters // 2] = value

    return fill
