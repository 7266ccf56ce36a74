"""From a logical batch of units to the exact sum of their clipped gradients.

A micro-batch holds records of one padded length. Records are sorted by that length and then by unit, so the records
of one unit always arrive in an order that depends on them alone; a unit with several records is summed in float32 in
that order before it is clipped.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from appliance.errors import WillNotFit, ran_out
from appliance.jobs.job import EngineOptions
from appliance.jobs.limits import positions
from appliance.jobs.plan import PrivacyPlan
from appliance.train import device
from appliance.train.adapting import body
from appliance.train.clipping import ExactSum, finite
from appliance.train.encode import Encoded
from appliance.train.experts import RoutedExperts
from appliance.train.graphs import Graphs
from appliance.train.logits import find_logits
from appliance.train.lora import Adapter, GradientBuffer
from appliance.train.loss import find_supervised, hidden_gradient
from appliance.train.memory import checkpoint_layers, give_back
from appliance.train.pointwise import RecordByRecord, follow_place
from appliance.train.rows import ALONE, Counts, RowCounts, candidates, deal, overhead

Numbered = list[tuple[int, Encoded]]  # (number of its unit, record)
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
      counts: the row counts that were proved to give one record the same bits (`train.coupling`); None before that,
        when any count is taken.
      expected: indices of the sites that report in each micro-batch: all, but while the model is `shortened`.
    """

    def __init__(self, adapter: Adapter, plan: PrivacyPlan, options: EngineOptions, pad: int) -> None:
        self.adapter = adapter
        self.counts: RowCounts | None = None
        self.expected = frozenset(site.index for site in adapter.sites)
        self._pad = pad
        self._tokens = options.physical_tokens
        self._limit = math.inf
        self._body = body(adapter.model)
        self._experts = RoutedExperts(self._body)
        self._widths = _widths(adapter)
        model: Any = adapter.model
        self._logits = find_logits(model, self._body)
        self._head = self._logits.head
        self._device = adapter.sites[0].a.device
        device.make_repeatable(self._device)
        self._least = _least_length(adapter) if options.dtype == "bfloat16" and self._device.type == "cpu" else 8
        # A model in bfloat16 computes its per-record gradients in bfloat16: a wider buffer would hold the same values.
        coarse = torch.bfloat16 in (self._head.weight.dtype, getattr(torch, options.gradient_dtype))
        dtype = torch.bfloat16 if coarse else torch.float32
        room = options.gradient_bytes // (dtype.itemsize * adapter.parameters)
        rows = max(1, min(_MAX_ROWS, self._tokens // 8, room))
        self.buffer = GradientBuffer(adapter.parameters, rows, self._device, dtype)
        adapter.bind(self.buffer)
        self.sum = ExactSum(plan.max_grad_norm, plan.clipping, adapter.parameters, self.buffer.width, self._device)
        if options.gradient_checkpointing:
            checkpoint_layers(model)
        self._graphs = Graphs(self._hidden) if options.cuda_graphs and self._device.type == "cuda" else None

    @property
    def precision(self) -> torch.dtype:
        """The coarser of the dtype that the model computes in and that of the per-record gradients: the buffer's."""
        return self.buffer.data.dtype

    @property
    def vocabulary(self) -> int:
        """How many tokens the model knows."""
        model: Any = self.adapter.model
        return int(model.get_input_embeddings().weight.shape[0])

    @property
    def width(self) -> int:
        """Values of a hidden state at the head."""
        return int(self._head.weight.shape[1])

    @property
    def whole(self) -> bool:
        """Whether all sites report."""
        return len(self.expected) == len(self.adapter.sites)

    @property
    def on_gpu(self) -> bool:
        """Whether the model is on a GPU, or whatever is not the CPU."""
        return self._device.type != "cpu"

    def pad_length(self, length: int) -> int:
        """Find the length that a row of this bucket is computed with; public."""
        return max(length, self._least)

    def most_rows(self, length: int) -> int:
        """Count the records of this bucket that fit into a micro-batch; public."""
        return max(1, min(len(self.buffer.data), self._tokens // self.pad_length(length)))

    def rows_at(self, length: int) -> int:
        """Count the records of this bucket that make a full micro-batch: of those that fit, as many as were proved."""
        return self._counts(length)[0]

    def accumulate(self, units: Sequence[Unit]) -> None:
        """Add the clipped gradient of every unit to `sum`. No unit at all is a batch like any other."""
        singles = [records[0] for records in units if len(records) == 1]
        for _, rows in self._compute_batches([(0, record) for record in singles]):
            self.sum.add(rows)
        several = [records for records in units if len(records) > 1]
        size = len(self.buffer.data)
        for start in range(0, len(several), size):
            self._accumulate_group(several[start : start + size])

    def gradients(
        self, batch: Sequence[Encoded], physical: int | None = None, upstream: Tensor | None = None
    ) -> Tensor:
        """Compute per-record gradients of records of one padded length.

        Args:
          batch: at most `rows_at(length)` records.
          physical: how many rows are computed, those without a record included; None is the least proved count.
          upstream: for proofs, in place of the losses' gradients at the end of the body, [n, length, width]; row i
            gets number i modulo n.

        Returns:
          [len(batch), width], a view that the next call overwrites; rows may still be non-finite.
        """
        length = self.pad_length(batch[0].length)
        physical = physical or self._fill(len(batch), batch[0].length)
        ids = [token for record in batch for token in (*record.ids, *[self._pad] * (length - len(record.ids)))]
        ids += [self._pad] * ((physical - len(batch)) * length)
        shared = self.counts is None or self.counts.shared
        at = find_supervised(batch, length, physical * length, shared=shared)
        sent = device.send(torch.tensor([*ids, *at.numbers]), self._device)
        token_ids, at = sent[: len(ids)].view(physical, length), at.on(sent[len(ids) :])
        ends = upstream if upstream is None else upstream.to(self._device)[torch.arange(physical) % len(upstream)]

        def gradient(hidden: Tensor) -> Tensor:
            return hidden_gradient(hidden, self._logits, at) if ends is None else ends.to(hidden)

        return self._compute(token_ids, gradient, recorded=self.whole and upstream is None)[: len(batch)]

    def _compute(self, ids: Tensor, gradient: Callable[[Tensor], Tensor], *, recorded: bool) -> Tensor:
        """Forward and backward pass of a micro-batch, by a CUDA graph where there is one for its shape."""
        graphs = self._graphs if recorded else None
        found = graphs.find(ids) if graphs else None
        if graphs and found:
            graphs.replay(found, ids, gradient)
            return self.buffer.data[: len(ids)]
        with self._by_record(len(ids)), device.unpacked():
            rows = self._call(ids, gradient)
            if graphs:
                graphs.record(ids, gradient, rows)
        return rows

    def _call(self, ids: Tensor, gradient: Callable[[Tensor], Tensor]) -> Tensor:
        """Forward and backward pass; what autograd held of them is gone when this returns."""
        self.buffer.begin(len(ids), self.expected, len(self.adapter.sites))
        self._experts.rows = len(ids)
        hidden = self._hidden(ids)
        torch.autograd.backward(hidden, gradient(hidden))
        return self.buffer.finish()

    def _hidden(self, ids: Tensor) -> Tensor:
        hidden: Tensor = self._body(input_ids=ids, use_cache=False).last_hidden_state
        return hidden

    def shrink(self, tokens: int) -> None:
        """Compute fewer tokens at once than these from now on, for which memory did not suffice.

        Raises:
          WillNotFit: by the next micro-batch, where no smaller row count is known to give the same bits.
        """
        self._limit = min(self._limit, tokens)

    def keep_fitting(self, counts: Counts, length: int) -> Counts:
        """Keep those of the counts for a padded length that memory has held so far.

        Raises:
          WillNotFit: it holds none of them.
        """
        found = tuple(count for count in counts if count * length < self._limit)
        if not found:
            hint = "free memory, or lower physical_tokens or max_tokens"
            raise WillNotFit("memory does not hold the smallest batch", hint=hint)
        return found

    def reporting(self) -> Iterator[tuple[int, int]]:
        """List (start, end) of the columns of the gradient buffer that the reporting sites write, neighbours merged."""
        spans = [(site.offset, site.end) for site in self.adapter.sites if site.index in self.expected]
        start, end = spans[0]
        for first, last in spans[1:]:
            if first != end:
                yield start, end
                start = first
            end = last
        yield start, end

    def _counts(self, length: int) -> Counts:
        most = self.most_rows(length)
        known = candidates(most) if self.counts is None else self.counts.at(self.pad_length(length))
        return self.keep_fitting(tuple(count for count in known if count <= most) or ALONE, self.pad_length(length))

    def _fill(self, rows: int, length: int) -> int:
        if self.counts is None:
            return rows
        return min((count for count in self._counts(length) if count >= rows), default=rows)

    def _by_record(self, rows: int) -> AbstractContextManager[Any]:
        """Compute pointwise functions record by record, where threads make them depend on a record's place."""
        apart = self._device.type == "cpu" and follow_place(torch.get_num_threads(), self._widths)
        return RecordByRecord(rows) if apart and rows > 1 else nullcontext()

    def _accumulate_group(self, units: Sequence[Unit]) -> None:
        totals = torch.zeros(len(units), self.buffer.width, device=self._device)
        numbered = [(number, record) for number, records in enumerate(units) for record in records]
        for batch, rows in self._compute_batches(numbered):
            whole = finite(rows)  # a record that is not finite must not take its unit with it
            for (number, _), row in zip(batch, whole, strict=True):
                totals[number] += row
        self.sum.add(totals)

    def _compute_batches(self, numbered: Numbered) -> Iterator[tuple[Numbered, Tensor]]:
        """Compute micro-batches and gradients. One that memory does not hold is split, and so are all that follow."""
        for batch in self._micro_batches(numbered):
            parts = [batch]
            while parts:
                part = parts.pop()
                rows = self._held([record for _, record in part])
                if rows is None:
                    parts += reversed(self._split(part))
                else:
                    yield part, rows

    def _held(self, batch: list[Encoded]) -> Tensor | None:
        """Compute the gradients; None if the batch has to be split. Nothing was added to a sum by then."""
        if len(batch) > self.rows_at(batch[0].length):
            return None  # memory did not hold as many before
        try:
            return self.gradients(batch)
        except (MemoryError, RuntimeError) as error:
            if not ran_out(error):
                raise
        # Here the exception is gone, and with it what it kept alive.
        if self._graphs:
            self._graphs.forget()
        give_back()
        self.shrink(self._fill(len(batch), batch[0].length) * self.pad_length(batch[0].length))
        return None

    def _micro_batches(self, numbered: Numbered) -> Iterator[Numbered]:
        # A record with nothing to supervise has a zero gradient; running the model would not change it.
        trained = sorted((item for item in numbered if item[1].positions), key=lambda item: (item[1].length, item[0]))
        for _, group in itertools.groupby(trained, key=lambda item: item[1].length):
            yield from self._split(list(group))

    def _split(self, same: Numbered) -> list[Numbered]:
        """Split records of one bucket into micro-batches of proved row counts."""
        length = same[0][1].length
        sizes = deal(len(same), self._counts(length), self.pad_length(length), overhead(self._device))
        starts = itertools.accumulate(sizes, initial=0)
        return [same[start : start + size] for start, size in zip(starts, sizes, strict=False)]


def _widths(adapter: Adapter) -> list[int]:
    """List the widths of activations, ascending, but for what A gives: that is scaled, which IEEE 754 rounds once."""
    narrow = {id(site.a) for site in adapter.sites}
    layers = [m for m in adapter.model.modules() if isinstance(m, nn.Linear) and id(m.weight) not in narrow]
    return sorted({layer.out_features for layer in layers})


def _least_length(adapter: Adapter) -> int:
    # torch multiplies small bfloat16 matrices by another kernel, whose last bits differ: whether a product of the
    # adapter is small must not depend on how many records there are, so one record alone has to be large enough.
    smallest: int = min(site.rank * min(site.a.shape[1], site.b.shape[0]) for site in adapter.sites)
    least = 8 * (_SMALL_PRODUCT // (8 * smallest) + 1)
    config: Any = adapter.model.config
    return min(least, positions(config.to_dict()) or least)
