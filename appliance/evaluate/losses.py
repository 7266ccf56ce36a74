"""The loss of each record by itself: mean cross-entropy over its own supervised tokens, never a mean over a batch.

Logits exist only at supervised positions, in pieces. A micro-batch holds records of one padded length, and a record's
loss must not depend on the others in it, not even in its last bit: what a record adds to a private sum could otherwise
be changed by another one. Whether the kernels give that is tried on synthetic records first (`Meter`); where they do
not, every record has a micro-batch of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from appliance.errors import ConfigInvalid
from appliance.evaluate.variants import Variants

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

    Attributes:
      most_rows: rows of a micro-batch at most; 1 where this machine's kernels couple rows.

    Raises:
      ConfigInvalid: the model does not separate its body from its head.
    """

    def __init__(self, variants: Variants, pad: int, physical_tokens: int) -> None:
        self._variants, self._pad, self._tokens = variants, pad, physical_tokens
        self._body: Any = variants.model.get_decoder()
        self._head: Any = variants.model.get_output_embeddings()
        if self._body is variants.model or self._head is None:
            raise ConfigInvalid("the model has no separate language-model head", where="base")
        self.most_rows = _MOST_ROWS
        self.most_rows = _MOST_ROWS if self._rows_are_independent() else 1

    def measure(self, records: Sequence[Tokens]) -> Tensor:
        """Losses of records.

        Args:
          records: any number of records of any lengths.

        Returns:
          float64 [len(records), 1 + adapters] on the CPU: base first, then the adapters in order; nat per token. A
          record with nothing supervised has 0 everywhere.
        """
        found = torch.zeros(len(records), 1 + len(self._variants.names), dtype=torch.float64)
        for rows in self._micro_batches(records):
            batch = [records[row] for row in rows]
            for column, name in enumerate((None, *self._variants.names)):
                self._variants.use(name)
                found[rows, column] = self._losses(batch)
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
        return max(1, min(self.most_rows, self._tokens // length))

    @torch.inference_mode()
    def _losses(self, batch: Sequence[Tokens]) -> Tensor:
        ids = torch.full((len(batch), batch[0].length), self._pad, dtype=torch.long)
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
            logits = self._head(hidden[positions[start : start + step]]).float()
            target = targets[start : start + step, None]
            parts = torch.logsumexp(logits, dim=-1) - logits.gather(1, target)[:, 0]
            total += parts.double().sum().cpu()
        return total / len(positions)

    def _rows_are_independent(self) -> bool:
        """Bit for bit, on random tokens: alone, first, last and in the middle of a full micro-batch."""
        generator = torch.Generator().manual_seed(0)
        vocabulary = self._head.weight.shape[0]
        for name in (None, *self._variants.names[-1:]):  # all adapters run the same kernels
            self._variants.use(name)
            for length in _PROOF_LENGTHS:
                rows = max(2, min(16, self._tokens // length))
                ids = torch.randint(0, vocabulary, (rows, length), generator=generator)
                records = [_Synthetic(tuple(row.tolist())) for row in ids]
                full = self._losses(records)
                some = {0, rows // 2, rows - 1}
                if any(not torch.equal(self._losses([records[row]])[0], full[row]) for row in some):
                    return False
                if not torch.equal(self._losses(records[1:]), full[1:]):
                    return False
        return True


class _Synthetic:
    def __init__(self, ids: tuple[int, ...]) -> None:
        self.ids = ids
        self.positions = tuple(range(len(ids) // 2, len(ids) - 1))
        self.length = len(ids)
