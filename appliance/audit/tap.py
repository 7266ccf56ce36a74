"""What the self-test needs of a mechanism: a way to drive it and the release that comes out, nothing in between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from appliance.jobs.record import Record

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
Row = Callable[[Floats], None]
"""Writes one per-record gradient into a vector of zeros, float32 [P]."""
Units = Sequence[Sequence[Row]]
"""The rows of every unit of privacy of one logical batch."""


class Tap(Protocol):
    """A mechanism as the self-test sees it.

    Attributes:
      parameters: P, the trainable parameters.
      tensors: (name, start, stop) of every trainable tensor in the flat vector.
      clip_norm: C, the claimed bound on what one unit moves a release by.
      noise_std: sigma C, the claimed standard deviation of the noise.
      grid: the spacing of the integers to which noise is added.
    """

    parameters: int
    tensors: tuple[tuple[str, int, int], ...]
    clip_norm: float
    noise_std: float
    grid: float

    def release(self, units: Units, noise: Integers | None = None) -> Floats:
        """Release the noised sum, float32 [P], of units with these gradients; with `noise`, that noise again."""
        ...

    def release_records(self, units: Sequence[Sequence[Record]], noise: Integers | None = None) -> Floats:
        """Do the same for synthetic records, through forward and backward pass."""
        ...

    def draw(self) -> Integers:
        """Draw a noise vector of the production source, int64 [P], in units of the grid."""
        ...
