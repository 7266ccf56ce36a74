"""From a logical batch of units to the exact sum of their clipped gradients.

A micro-batch holds records of one padded length. Records are sorted by that length and then by unit, so the records
of one unit always arrive in an order that depends on them alone; a unit with several records is summed in float32 in
that order before it is clipped.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from appliance.errors import WillNotFit, ran_out
from appliance.records import EngineOptions, PrivacyPlan
from appliance.train.adapting import body
from appliance.train.clipping import ExactSum, norms
from appliance.train.encode import Encoded
from appliance.train.lora import Adapter, GradientBuffer
from appliance.train.loss import hidden_gradient
from appliance.train.memory import give_back

_MAX_ROWS = 256
_SMALL_PRODUCT = 16**3

Unit = Sequence[Encoded]
"""The records of one unit of privacy."""


class Engine:
    """Per-record gradients, clip and exact sum for one adapted model.

    Args:
      adapter: the model and its LoRA sites.
      plan: clip norm and clipping rule.
      options: physical_tokens, gradient checkpointing, and dtype and room of the per-record gradients.
      pad: token id that fills a row up to its bucket.

    Attributes:
      sum: the exact sum of the logical step in progress.
      fixed_rows: None, or the row count every micro-batch is filled up to (with rows that are ignored), for kernels
        whose results for a row depend on how many rows there are.
    """

    def __init__(self, adapter: Adapter, plan: PrivacyPlan, options: EngineOptions, pad: int) -> None:
        self.adapter = adapter
        self.fixed_rows: int | None = None
        self._pad = pad
        self._tokens = options.physical_tokens
        self._least = _least_length(adapter) if options.dtype == "bfloat16" else 8
        self._body = body(adapter.model)
        model: Any = adapter.model
        self._head = model.get_output_embeddings()
        self._device = adapter.sites[0].a.device
        # A model in bfloat16 computes its per-record gradients in bfloat16: a wider buffer would hold the same values.
        coarse = torch.bfloat16 in (self._head.weight.dtype, getattr(torch, options.gradient_dtype))
        dtype = torch.bfloat16 if coarse else torch.float32
        room = options.gradient_bytes // (dtype.itemsize * adapter.parameters)
        rows = max(1, min(_MAX_ROWS, self._tokens // 8, room))
        self.buffer = GradientBuffer(adapter.parameters, rows, self._device, dtype)
        adapter.bind(self.buffer)
        self.sum = ExactSum(plan.max_grad_norm, plan.clipping, adapter.parameters, self.buffer.width, self._device)
        if options.gradient_checkpointing:
            _checkpoint(model)

    @property
    def precision(self) -> torch.dtype:
        """The coarser of the dtype that the model computes in and that of the per-record gradients: the buffer's."""
        return self.buffer.data.dtype

    def rows_at(self, length: int) -> int:
        """How many records of this padded length make a full micro-batch; public."""
        rows = max(1, min(len(self.buffer.data), self._tokens // max(length, self._least)))
        return min(rows, self.fixed_rows or rows)

    def accumulate(self, units: Sequence[Unit]) -> None:
        """Adds the clipped gradient of every unit to `sum`. No unit at all is a batch like any other."""
        singles = [records[0] for records in units if len(records) == 1]
        for _, rows in self._computed([(0, record) for record in singles]):
            self.sum.add(rows)
        several = [records for records in units if len(records) > 1]
        size = len(self.buffer.data)
        for start in range(0, len(several), size):
            self._accumulate_group(several[start : start + size])

    def gradients(self, batch: Sequence[Encoded]) -> Tensor:
        """Per-record gradients of records of one padded length.

        Args:
          batch: at most `rows_at(length)` records.

        Returns:
          [len(batch), width], a view that the next call overwrites; rows may still be non-finite.
        """
        rows, length = len(batch), max(batch[0].length, self._least)
        physical = rows if self.fixed_rows is None else self.rows_at(length)
        ids = torch.full((physical, length), self._pad, dtype=torch.long)
        for row, record in enumerate(batch):
            ids[row, : len(record.ids)] = torch.tensor(record.ids)
        self.buffer.begin(physical, len(self.adapter.sites))
        hidden = self._body(input_ids=ids.to(self._device), use_cache=False).last_hidden_state
        hidden.backward(hidden_gradient(hidden, self._head, list(batch), together=self.fixed_rows is None))
        return self.buffer.finish()[:rows]

    def _accumulate_group(self, units: Sequence[Unit]) -> None:
        totals = torch.zeros(len(units), self.buffer.width, device=self._device)
        numbered = [(number, record) for number, records in enumerate(units) for record in records]
        for batch, rows in self._computed(numbered):
            norms(rows)  # zeroes the records that are not finite, so that they do not take their unit with them
            for (number, _), row in zip(batch, rows, strict=True):
                totals[number] += row
        self.sum.add(totals)

    def _computed(self, numbered: list[tuple[int, Encoded]]) -> Iterator[tuple[list[tuple[int, Encoded]], Tensor]]:
        """Micro-batches with their gradients. One that memory does not hold is halved, and so are all that follow."""
        for batch in self._micro_batches(numbered):
            parts = [batch]
            while parts:
                part = parts.pop()
                rows = self._held([record for _, record in part])
                if rows is None:
                    parts += [part[len(part) // 2 :], part[: len(part) // 2]]
                else:
                    yield part, rows

    def _held(self, batch: list[Encoded]) -> Tensor | None:
        """The gradients, or None if the batch has to be halved. Nothing was added to a sum by then."""
        length = batch[0].length
        if len(batch) > self.rows_at(length):
            return None  # memory did not hold as many before
        try:
            return self.gradients(batch)
        except (MemoryError, RuntimeError) as error:
            if not ran_out(error):
                raise
        # Here the exception is gone, and with it what it kept alive.
        give_back()
        if len(batch) == 1 or self.fixed_rows is not None:  # fewer rows than are fixed would compute other bits
            raise WillNotFit("memory does not hold the smallest batch", hint="free memory, or lower max_tokens")
        self._tokens = len(batch) // 2 * max(length, self._least)
        return None

    def _micro_batches(self, numbered: list[tuple[int, Encoded]]) -> Iterator[list[tuple[int, Encoded]]]:
        # A record with nothing to supervise has a zero gradient; running the model would not change it.
        trained = sorted((item for item in numbered if item[1].positions), key=lambda item: (item[1].length, item[0]))
        for length, group in itertools.groupby(trained, key=lambda item: item[1].length):
            same = list(group)
            # As few micro-batches as possible, of about equal size: a last one of a few rows would be slow.
            size = math.ceil(len(same) / math.ceil(len(same) / self.rows_at(length)))
            for start in range(0, len(same), size):
                yield same[start : start + size]


def _least_length(adapter: Adapter) -> int:
    # torch multiplies small bfloat16 matrices by another kernel, whose last bits differ: whether a product of the
    # adapter is small must not depend on how many records there are, so one record alone has to be large enough.
    smallest: int = min(site.rank * min(site.a.shape[1], site.b.shape[0]) for site in adapter.sites)
    return 8 * (_SMALL_PRODUCT // (8 * smallest) + 1)


def _checkpoint(model: Any) -> None:
    # Layers recompute only in training mode; their children stay in evaluation mode, so nothing is dropped out.
    from transformers.modeling_layers import GradientCheckpointingLayer

    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True
