"""Synthetic units for the self-test: gradients of chosen direction and norm, and records that are nobody's."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray

from appliance.audit.tap import Floats, Row, Tap
from appliance.jobs.record import Record

DIRECTIONS = 128
"""Canaries along coordinates, each in its own release or all in one."""

MODERATE = (0.5, 0.99, 1.01, 1.1, 1.5, 1.99, 3.0, 9.0, 30.0, 200.0)
"""Norms in units of C at which a clip that starts too late would show."""

_SIGN = np.uint32(1 << 31)
_WORK = 1 << 29  # row elements that the joint release of the canaries may cost


@dataclass(frozen=True, slots=True)
class Canary:
    """A gradient that is zero but on a few coordinates.

    Attributes:
      coordinates: positions in the flat vector, int64 [k], apart from those of every other canary of its set.
      norm: its L2 norm.
    """

    coordinates: NDArray[np.int64]
    norm: float

    def __call__(self, out: Floats) -> None:
        """Write the gradient."""
        out[self.coordinates] = self.norm / math.sqrt(len(self.coordinates))


def directions(tap: Tap, generator: Generator) -> list[Canary]:
    """Make canaries far beyond the clip whose coordinates reach every trainable tensor, at its ends or inside.

    Up to 128 tensors each canary is a single coordinate; where there are more tensors, or the adapter is so large that
    128 rows would take seconds, a canary is spread over several.
    """
    rows = min(DIRECTIONS, max(16, _WORK // tap.parameters), tap.parameters // 2)
    chosen = _coordinates(tap, max(rows, len(tap.tensors)), generator)
    norm = 1e3 * max(1.0, tap.clip_norm)
    return [Canary(np.array(chosen[row::rows]), norm) for row in range(min(rows, len(chosen)))]


def moderate(tap: Tap, generator: Generator) -> list[Canary]:
    """Make canaries with norms around C."""
    chosen = generator.choice(tap.parameters, len(MODERATE), replace=False)
    return [Canary(np.array([at]), times * tap.clip_norm) for at, times in zip(chosen, MODERATE, strict=True)]


def _coordinates(tap: Tap, count: int, generator: Generator) -> list[int]:
    seen: dict[int, None] = {}
    turn = 0
    while len(seen) < count:
        _, start, stop = tap.tensors[turn % len(tap.tensors)]
        kind = generator.integers(4)
        at = (start, stop - 1)[kind] if kind < 2 else int(generator.integers(start, stop))
        if at not in seen or turn > 8 * count:  # a tensor smaller than its share is passed over in the end
            seen[at] = None
        turn += 1
        if turn > 16 * count:
            break
    return list(seen)


def dense(parameters: int, norm: float, seed: int) -> Row:
    """Make a gradient of random signs and equal magnitudes; a negative norm points the other way."""
    magnitude = np.float32(abs(norm) / math.sqrt(parameters)).view(np.uint32)
    turned = np.uint32(_SIGN if norm < 0 else 0) | magnitude

    def fill(out: Floats) -> None:
        bits = np.frombuffer(default_rng(seed).bytes(4 * parameters), dtype=np.uint32)
        np.bitwise_xor(bits & _SIGN, turned, out=out.view(np.uint32))

    return fill


def poisoned(parameters: int, value: float) -> Row:
    """Make a gradient with one value that is not a number or not finite."""

    def fill(out: Floats) -> None:
        out[:] = 1.0
        out[parameters // 2] = value

    return fill


def records() -> list[Record]:
    """Write four short synthetic texts; nobody's data."""
    texts = ("The sky is blue today.", "One two three four five.", "Water is wet and cold.", "Cats sleep all day long.")
    return [Record(unit=f"synthetic-{n}", kind="text", parts=(("text", text),)) for n, text in enumerate(texts)]
