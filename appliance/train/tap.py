"""The release tap: drives a mechanism from outside and sees only what reaches the inner optimiser.

Per-record gradients are handed to the production engine in place of those of its backward pass; from there on
everything is production: micro-batches, clip, grid, sum, noise, divisor. What AdamW would have stepped with is taken
in its stead, so the weights never move. A replayed noise vector takes the place of the noise source for one release.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from appliance.errors import GateFailed
from appliance.jobs.plan import PrivacyPlan
from appliance.jobs.record import Record
from appliance.train import standins
from appliance.train.driving import LoopTap
from appliance.train.encode import Encoded
from appliance.train.keystream import Words
from appliance.train.mechanism import Assembled
from appliance.train.narrow import narrowed
from appliance.train.proofs import random_b
from appliance.train.rows import RowCounts
from appliance.train.standins import Integers, Replayed, Row, Tape

Floats = NDArray[np.float32]

_ROWS = 2  # rows of every micro-batch of synthetic records while nothing is proved, so that kernels compute each alike


class ReleaseTap:
    """What an audit may do with a mechanism, and all that it may see of it.

    Args:
      assembled: the mechanism; its weights stay as they are. Where its engine's row counts are proved, they are used.
      plan: what the mechanism claims to be.

    Attributes:
      parameters: P.
      tensors: (name, start, stop) of every trainable tensor in the flat vector.
      clip_norm: the claimed bound C on one unit's influence on a release.
      clipping: the claimed rule, "fixed" or "normalised".
      noise_std: the claimed standard deviation of the noise, sigma C.
      grid: the spacing of the integers to which noise is added.
      rows: how many rows a micro-batch may have.
      lengths: the padded lengths that a record can have, ascending.
      multipliers: of the levels of which the noise is composed; 1 for the finest.
      proved: whether the engine's row counts are proved.
    """

    def __init__(self, assembled: Assembled, plan: PrivacyPlan) -> None:
        self._assembled, self._plan = assembled, plan
        self._divisor = plan.expected_batch_size
        self.parameters = assembled.adapter.parameters
        self.tensors = _tensors(assembled)
        self.clip_norm = plan.max_grad_norm
        self.clipping: Literal["fixed", "normalised"] = plan.clipping
        self.noise_std = plan.noise_multiplier * plan.max_grad_norm
        self.grid = assembled.engine.sum.grid
        self.rows = len(assembled.engine.buffer.data)
        self.lengths = tuple(assembled.encoder.buckets)
        self.multipliers: tuple[int, ...] = getattr(assembled.optimizer._noise, "multipliers", ())

    @property
    def proved(self) -> bool:
        """Whether the engine's row counts are proved."""
        return self._assembled.engine.counts is not None

    def narrowed(self) -> ReleaseTap:
        """Tap the same mechanism with an adapter of two layers: all that depends on the number of units, cheaply."""
        return ReleaseTap(narrowed(self._assembled, self._plan), self._plan)

    def loop(self) -> LoopTap:
        """Tap the loop that trains with this mechanism."""
        return LoopTap(self._assembled)

    def release(
        self,
        units: Sequence[Sequence[Row]],
        noise: Integers | None = None,
        lengths: Sequence[Sequence[int]] | None = None,
    ) -> Floats:
        """Take one logical step on units of given per-record gradients.

        Args:
          units: one sequence of rows for each unit of privacy; none at all is the empty batch.
          noise: int64 [P] in grid units to be replayed, or None for the production noise.
          lengths: the padded length of each row, of those in `lengths`; None is the shortest for all.

        Returns:
          float32 [P]: the gradient that the inner optimiser got, times the plan's divisor.
        """
        self._sum(units, lengths)
        return self._release(noise)

    def release_noised(self, units: Sequence[Sequence[Row]]) -> tuple[list[Integers], Floats]:
        """Take one logical step with the production noise: every noise vector that was drawn, and the release."""
        optimizer = self._assembled.optimizer
        self._sum(units, None)
        tape = Tape(optimizer._noise)
        return tape.drawn, self._release(tape)

    def release_records(self, units: Sequence[Sequence[Record]], noise: Integers | None = None) -> Floats:
        """Take one logical step on synthetic records, through tokenizer, forward and backward pass, with random B."""
        engine, encode = self._assembled.engine, self._assembled.encoder.encode
        kept, batch = engine.counts, [[encode(record) for record in unit] for unit in units]
        if kept is None:
            engine.counts = RowCounts({engine.pad_length(record.length): (_ROWS,) for unit in batch for record in unit})
        try:
            with random_b(self._assembled.adapter):
                engine.accumulate(batch)
        finally:
            engine.counts = kept
        return self._release(noise)

    def draw(self, count: int | None = None, entropy: Callable[[int], bytes] | None = None) -> Integers:
        """Draw a noise vector of the production source, int64 [count or P], in grid units.

        Args:
          count: how many values; None is P.
          entropy: stands for the operating system's generator, if given.
        """
        with standins.entropy(entropy) if entropy else nullcontext():
            return self._assembled.optimizer._noise.draw(count or self.parameters)

    def release_scripted(self, script: Callable[[int], Words]) -> Floats:
        """Take one logical step on the empty batch while `script` stands for the words of every keystream."""
        with standins.words(script):
            return self.release([])

    def _sum(self, units: Sequence[Sequence[Row]], lengths: Sequence[Sequence[int]] | None) -> None:
        rows = [row for unit in units for row in unit]
        padded = lengths or [[self.lengths[0]] * len(unit) for unit in units]
        numbers = iter(range(len(rows)))
        encoded = [[Encoded((next(numbers),), (0,), length) for length in unit] for unit in padded]
        with standins.given(self._assembled.engine, lambda record: rows[record.ids[0]]):
            self._assembled.engine.accumulate(encoded)

    def _release(self, noise: Integers | Tape | None) -> Floats:
        optimizer = self._assembled.optimizer
        inner: Any = optimizer.original_optimizer
        kept, taken = optimizer._noise, []
        if noise is not None:
            optimizer._noise = noise if isinstance(noise, Tape) else Replayed(noise)
        inner.step = lambda *_: taken.append(self._gradient())
        try:
            optimizer.apply(optimizer.release())
        finally:
            optimizer._noise = kept
            del inner.step
        if len(taken) != 1:
            raise GateFailed("a logical step did not reach the optimiser exactly once")
        return taken[0]

    def _gradient(self) -> Floats:
        adapter = self._assembled.adapter
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in adapter.trainable]
        flat: Floats = adapter.flatten(found).mul_(self._divisor).cpu().numpy()
        return flat


def _tensors(assembled: Assembled) -> tuple[tuple[str, int, int], ...]:
    found = []
    for site in assembled.adapter.sites:
        if site.middle > site.offset:  # else A is frozen
            found.append((f"{site.name}.lora_A", site.offset, site.middle))
        found.append((f"{site.name}.lora_B", site.middle, site.end))
    return tuple(found)
