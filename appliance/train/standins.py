"""What stands in for a part of a mechanism while the self-test watches the rest: gradients, noise, randomness.

Nothing here is reached by a run. Each stand-in is put in for the length of a block or on a mechanism of the self-test.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from appliance.errors import GateFailed
from appliance.train.encode import Encoded
from appliance.train.engine import Engine
from appliance.train.keystream import Keystream, Words
from appliance.train.optimizer import ExactDPOptimizer, Noise

Row = Callable[[NDArray[np.float32]], None]
"""Writes one per-record gradient into a vector of zeros, float32 [P]."""
Integers = NDArray[np.int64]


@contextmanager
def given(engine: Engine, row_of: Callable[[Encoded], Row]) -> Iterator[None]:
    """Hand the engine these per-record gradients in place of those of its forward and backward pass."""

    def gradients(batch: Sequence[Encoded], *_: Any, **__: Any) -> Tensor:
        rows = engine.buffer.data[: len(batch)]
        for target, record in zip(rows, batch, strict=True):
            _write(target[: engine.buffer.parameters], row_of(record))
        return rows

    engine.gradients = gradients  # type: ignore[method-assign]
    try:
        yield
    finally:
        del engine.gradients  # the class's own again


def _write(target: Tensor, row: Row) -> None:
    if target.dtype == torch.float32 and target.device.type == "cpu":
        target.zero_()
        return row(target.numpy())
    values = np.zeros(len(target), dtype=np.float32)
    row(values)
    target.copy_(torch.from_numpy(values))


class Tape(Noise):
    """The noise source that it is made of, and every vector that was drawn from it."""

    def __init__(self, source: Noise) -> None:
        self._source = source
        self.drawn: list[Integers] = []

    def draw(self, count: int) -> Integers:
        """Draw from the source and keep a copy."""
        drawn = self._source.draw(count)
        self.drawn.append(np.array(drawn))
        return drawn


class Replayed(Noise):
    """A noise source that repeats one vector."""

    def __init__(self, noise: Integers) -> None:
        self._noise = noise

    def draw(self, count: int) -> Integers:
        """Repeat it, if it is what is asked for."""
        if count != len(self._noise):
            raise GateFailed("the noise is not drawn for every parameter")
        return self._noise.copy()


class Forced(Noise):
    """A noise source under which a step releases what it is told to, whatever its sum is.

    Args:
      optimizer: whose sum is taken off.
      target: the release that is due, in grid units, [P].
    """

    def __init__(self, optimizer: ExactDPOptimizer, target: Callable[[], Integers]) -> None:
        self._optimizer, self._target = optimizer, target

    def draw(self, count: int) -> Integers:
        """Draw what is missing to the release."""
        summed = self._optimizer._summed
        if summed is None:
            raise GateFailed("noise was asked for without a fresh sum")
        missing: Integers = self._target() - summed.cpu().numpy().astype(np.int64)
        return missing


@contextmanager
def entropy(source: Callable[[int], bytes]) -> Iterator[None]:
    """Let `source` stand for the operating system's generator, to see whether a draw follows it and nothing else."""
    kept = os.urandom
    os.urandom = source
    try:
        yield
    finally:
        os.urandom = kept


@contextmanager
def unsynced() -> Iterator[None]:
    """Write files without waiting for the disk: no drive outlives its process."""
    kept = os.fsync
    os.fsync = lambda fd: None
    try:
        yield
    finally:
        os.fsync = kept


@contextmanager
def words(script: Callable[[int], Words]) -> Iterator[None]:
    """Let `script` stand for every keystream, to see what the most unlikely words of it lead to."""
    stream: Any = Keystream
    kept = stream.words
    stream.words = lambda keystream, count: script(count)
    try:
        yield
    finally:
        stream.words = kept
