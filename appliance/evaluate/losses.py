"""The loss of each record by itself: mean cross-entropy over its own supervised tokens, never a mean over a batch.

Logits exist only at supervised positions, in pieces. A micro-batch holds records of one padded length, and a record's
loss must not depend on the others in it, not even in its last bit: what a record adds to a private sum could otherwise
be changed by another one. Whether the kernels give that is tried on synthetic records first (`Meter`). Where the
number of rows matters, as on a GPU, every micro-batch of one length is filled up to the same number of them; where that
does not help, every record has a micro-batch of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from appliance.errors import ConfigInvalid
from appliance.evaluate.variants import Variants
from appliance.jobs.limits import positions

_PIECE = 1 << 22  # logits that exist at once
_MOST_ROWS = 256
_PROOF_LENGTHS = (24, 200)


class Tokens(Protocol):
    """One record as tokens.

    `ids` are its tokens, `positions` the ascending positions p whose prediction of token p + 1 counts, `length` the
    public length its row is padded to.
    """

    @property
    def ids(self) -> Sequence[int]: ...  # noqa: D102
    @property
    def positions(self) -> Sequence[int]: ...  # noqa: D102
    @property
    def length(self) -> int: ...  # noqa: D102


class Meter:
    """Measures records with the base and with every adapter.

    Args:
      variants: the model and its adapters.
      pad: token id that fills a row.
      physical_tokens: tokens computed at once.
      logits: the model's own way from hidden states to logits; None is the head alone.

    Attributes:
      fixed: whether micro-batches are filled up, because the result for a row depends on how many there are. The rows
        of each length are then tried when it first occurs.

    Raises:
      ConfigInvalid: the model does not separate its body from its head.
    """

    def __init__(
        self,
        variants: Variants,
        pad: int,
        physical_tokens: int,
        logits: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._variants, self._pad, self._tokens = variants, pad, physical_tokens
        self._body: Any = variants.model.get_decoder()
        self._head: Any = variants.model.get_output_embeddings()
        if self._body is variants.model or self._head is None:
            raise ConfigInvalid("the model has no separate language-model head", where="base")
        self._logits = logits or self._head
        self._fixed_rows: dict[int, int] = {}
        cuda = self._head.weight.device.type != "cpu"  # its libraries choose a kernel by shape
        limit = positions(variants.model.config.to_dict())
        lengths = {n if limit is None else min(n, limit) for n in _PROOF_LENGTHS}
        self.fixed = cuda or not all(self._rows_are_independent(n, min(16, self._most(n))) for n in lengths)

    def measure(self, records: Sequence[Tokens]) -> Tensor:
        """Measure the losses of records.

        Args:
          records: any number of records of any lengths.

        Returns:
          float64 [len(records), 1 + adapters] on the CPU: base first, then the adapters in order; nat per token. A
          record with nothing supervised has 0 everywhere.
        """
        found = torch.zeros(len(records), 1 + len(self._variants.names), dtype=torch.float64)
        for rows in self._micro_batches(records):
            batch = [records[row] for row in rows]
            physical = self._rows_at(batch[0].length) if self.fixed else len(batch)
            for column, name in enumerate((None, *self._variants.names)):
                self._variants.use(name)
                found[rows, column] = self._losses(batch, physical)
        return found

    def _micro_batches(self, records: Sequence[Tokens]) -> Iterator[list[int]]:
        counted = [row for row, record in enumerate(records) if len(record.positions)]
        counted.sort(key=lambda row: records[row].length)
        batch: list[int] = []
        for row in counted:
            length = records[row].length
            if batch and (length != records[batch[0]].length or len(batch) == self._rows_at(length)):
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch

    def _rows_at(self, length: int) -> int:
        if not self.fixed:
            return self._most(length)
        if length not in self._fixed_rows:
            rows = self._most(length)
            self._fixed_rows[length] = rows if self._rows_are_independent(length, rows, rows) else 1
        return self._fixed_rows[length]

    def _most(self, length: int) -> int:
        return max(1, min(_MOST_ROWS, self._tokens // length))

    @torch.inference_mode()
    def _losses(self, batch: Sequence[Tokens], rows: int) -> Tensor:
        """Compute the losses of a batch that is computed as so many rows, those beyond it filled with padding."""
        ids = torch.full((rows, batch[0].length), self._pad, dtype=torch.long)
        for row, record in enumerate(batch):
            ids[row, : len(record.ids)] = torch.tensor(record.ids)
        hidden = self._body(input_ids=ids.to(self._head.weight.device), use_cache=False).last_hidden_state
        return torch.stack([self._loss(hidden[row], record) for row, record in enumerate(batch)])

    def _loss(self, hidden: Tensor, record: Tokens) -> Tensor:
        positions = torch.tensor(record.positions, device=hidden.device)
        targets = torch.tensor(record.ids, device=hidden.device)[positions + 1]
        total = torch.zeros((), dtype=torch.float64)
        step = max(1, _PIECE // self._head.weight.shape[0])
        for start in range(0, len(positions), step):
            logits = self._logits(hidden[positions[start : start + step]]).float()
            target = targets[start : start + step, None]
            parts = torch.logsumexp(logits, dim=-1) - logits.gather(1, target)[:, 0]
            total += parts.double().sum().cpu()
        return total / len(positions)

    def _rows_are_independent(self, length: int, most: int, fixed: int | None = None) -> bool:
        """Compare, bit for bit, random tokens alone, first, last and in the middle of a full micro-batch.

        Args:
          length: of the records.
          most: records of the full micro-batch.
          fixed: rows that every micro-batch is filled up to; None for as many as it has records.
        """
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(0, self._head.weight.shape[0], (max(1 if fixed else 2, most), length), generator=generator)
        records = [_Synthetic(tuple(row.tolist())) for row in ids]
        self._variants.use(next(iter(self._variants.names[-1:]), None))  # runs the base's kernels and every adapter's

        def losses(batch: list[_Synthetic]) -> Tensor:
            return self._losses(batch, fixed or len(batch))

        full = losses(records)
        some = {0, len(records) // 2, len(records) - 1}
        if any(not torch.equal(losses([records[row]])[0], full[row]) for row in some):
            return False
        return len(records) == 1 or torch.equal(losses(records[1:]), full[1:])


class _Synthetic:
    def __init__(self, ids: tuple[int, ...]) -> None:
        self.ids = ids
        self.positions = tuple(range(len(ids) // 2, len(ids) - 1))
        self.length = len(ids)
