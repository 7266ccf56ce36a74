"""The release tap: drives a mechanism from outside and sees only what reaches the inner optimiser.

Per-record gradients are handed to the production engine in place of those of its backward pass; from there on
everything is production: micro-batches, clip, grid, sum, noise, divisor. What AdamW would have stepped with is taken
in its stead, so the weights never move. A replayed noise vector takes the place of the noise source for one release.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from appliance.errors import GateFailed
from appliance.jobs.plan import PrivacyPlan
from appliance.jobs.record import Record
from appliance.train.encode import Encoded
from appliance.train.mechanism import Assembled
from appliance.train.rows import RowCounts

Row = Callable[[NDArray[np.float32]], None]
"""Writes one per-record gradient into a vector of zeros, float32 [P]."""

_LENGTH = 8  # the padded length under which given gradients go through the engine
_ROWS = 4  # rows of every micro-batch of synthetic records, so that kernels compute each row alike


class ReleaseTap:
    """What an audit may do with a mechanism, and all that it may see of it.

    Args:
      assembled: the mechanism; its weights stay as they are.
      plan: what the mechanism claims to be.

    Attributes:
      parameters: P.
      tensors: (name, start, stop) of every trainable tensor in the flat vector.
      clip_norm: the claimed bound C on one unit's influence on a release.
      noise_std: the claimed standard deviation of the noise, sigma C.
      grid: the spacing of the integers to which noise is added.
    """

    def __init__(self, assembled: Assembled, plan: PrivacyPlan) -> None:
        self._assembled = assembled
        self._divisor = plan.expected_batch_size
        self.parameters = assembled.adapter.parameters
        self.tensors = _tensors(assembled)
        self.clip_norm = plan.max_grad_norm
        self.noise_std = plan.noise_multiplier * plan.max_grad_norm
        self.grid = assembled.engine.sum.grid

    def release(self, units: Sequence[Sequence[Row]], noise: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Take one logical step on units of given per-record gradients.

        Args:
          units: one sequence of rows for each unit of privacy; none at all is the empty batch.
          noise: int64 [P] in grid units to be replayed, or None for the production noise.

        Returns:
          float32 [P]: the gradient that the inner optimiser got, times the plan's divisor.
        """
        rows = [row for unit in units for row in unit]
        numbers = iter(range(len(rows)))
        encoded = [[Encoded((next(numbers),), (0,), _LENGTH) for _ in unit] for unit in units]
        with self._give(rows):
            self._assembled.engine.accumulate(encoded)
        return self._release(noise)

    def release_records(
        self, units: Sequence[Sequence[Record]], noise: NDArray[np.int64] | None = None
    ) -> NDArray[np.float32]:
        """Take one logical step on synthetic records, through tokenizer, forward and backward pass."""
        engine, encode = self._assembled.engine, self._assembled.encoder.encode
        kept, batch = engine.counts, [[encode(record) for record in unit] for unit in units]
        if kept is None:  # nothing is proved yet
            engine.counts = RowCounts({engine.pad_length(record.length): (_ROWS,) for unit in batch for record in unit})
        try:
            engine.accumulate(batch)
        finally:
            engine.counts = kept
        return self._release(noise)

    def draw(self) -> NDArray[np.int64]:
        """Draw a noise vector of the production source, int64 [P], in grid units."""
        return self._assembled.optimizer._noise.draw(self.parameters)

    @contextmanager
    def _give(self, rows: Sequence[Row]) -> Iterator[None]:
        engine = self._assembled.engine

        def gradients(batch: Sequence[Encoded], *_: Any) -> Tensor:
            data = engine.buffer.data[: len(batch)]
            for target, record in zip(data, batch, strict=True):
                values = np.zeros(self.parameters, dtype=np.float32)
                rows[record.ids[0]](values)
                target[: self.parameters] = torch.from_numpy(values)
            return data

        engine.gradients = gradients  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            del engine.gradients  # the class's own again

    def _release(self, noise: NDArray[np.int64] | None) -> NDArray[np.float32]:
        optimizer = self._assembled.optimizer
        inner: Any = optimizer.original_optimizer
        kept, taken = optimizer._noise, []
        if noise is not None:
            optimizer._noise = _Recorded(noise)
        inner.step = lambda *_: taken.append(self._gradient())
        try:
            optimizer.apply(optimizer.release())
        finally:
            optimizer._noise = kept
            del inner.step
        if len(taken) != 1:
            raise GateFailed("a logical step did not reach the optimiser exactly once")
        return taken[0]

    def _gradient(self) -> NDArray[np.float32]:
        adapter = self._assembled.adapter
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in adapter.trainable]
        flat: NDArray[np.float32] = adapter.flatten(found).mul_(self._divisor).cpu().numpy()
        return flat


class _Recorded:
    """A noise source that repeats one vector."""

    def __init__(self, noise: NDArray[np.int64]) -> None:
        self._noise = noise

    def draw(self, count: int) -> NDArray[np.int64]:
        if count != len(self._noise):
            raise GateFailed("the noise is not drawn for every parameter")
        return self._noise.copy()


def _tensors(assembled: Assembled) -> tuple[tuple[str, int, int], ...]:
    found = []
    for site in assembled.adapter.sites:
        if site.middle > site.offset:  # else A is frozen
            found.append((f"{site.name}.lora_A", site.offset, site.middle))
        found.append((f"{site.name}.lora_B", site.middle, site.end))
    return tuple(found)
