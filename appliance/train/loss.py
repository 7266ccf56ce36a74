"""The gradient of each record's loss with respect to its hidden states.

The loss of a record is the mean cross-entropy over its own supervised tokens, so no record's gradient depends on how
many tokens another one has (the batch-mean loss of common libraries does). Logits exist only at supervised
positions, in pieces, in float32; the gradient is written down directly, (softmax - one-hot) W, so the loss
itself, which is private, is never computed.

A piece always has the same number of rows, the last one filled up with zeros: matrix products of one shape treat every
row alike (`proofs.coupled` looks), while products of as many rows as a record or a micro-batch has tokens need not, and
one product for each short record streams the whole vocabulary through the cache for a handful of rows: with
15 supervised tokens a record that took more than twice as long as pieces of 128.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from appliance.train.encode import Encoded

# Vocabulary entries summed in one product. Some kernels add up all of the vocabulary one by one, and what the targets'
# own embeddings leave of the sum is small; with short sums and the target apart, ten times less is lost.
_TERMS = 4096


def piece_rows(device: torch.device) -> int:
    """Supervised positions whose logits exist at once: where more gained nothing on a CPU, and enough to fill a GPU."""
    return 128 if device.type == "cpu" else 1024


@torch.no_grad()
def hidden_gradient(hidden: Tensor, head: Any, batch: list[Encoded], *, together: bool = True) -> Tensor:
    """d(sum of the records' losses) / d(hidden).

    Args:
      hidden: last hidden states [rows, length, width], row i of record i; further rows are ignored.
      head: the frozen language-model head, a linear layer without bias or with it.
      batch: the records.
      together: whether positions of several records may share a piece. Otherwise the shape of every product follows
        from one record alone, for kernels to which the row matters.

    Returns:
      A tensor like `hidden`, zero wherever nothing is supervised.
    """
    gradient = torch.zeros_like(hidden)
    step = piece_rows(hidden.device)
    groups = [list(enumerate(batch))] if together else [[item] for item in enumerate(batch)]
    for group in groups:
        rows = [row for row, record in group for _ in record.positions]
        positions = [position for _, record in group for position in record.positions]
        targets = [record.ids[position + 1] for _, record in group for position in record.positions]
        counts = [len(record.positions) for _, record in group for _ in record.positions]
        where = torch.tensor([rows, positions, targets, counts], device=hidden.device)
        for row, position, target, count in torch.split(where, step, dim=1) if rows else ():
            gradient[row, position] = _piece(hidden[row, position], head, target, count, step if together else 0)
    return gradient


def _piece(states: Tensor, head: Any, targets: Tensor, counts: Tensor, least: int) -> Tensor:
    # (softmax - one-hot) W / count for [n, width], computed with at least so many rows.
    filled = functional.pad(states, (0, 0, 0, max(0, least - len(states))))
    probability = torch.softmax(head(filled).float(), dim=-1).to(states.dtype)
    expected = torch.zeros(filled.shape, dtype=torch.float32, device=states.device)
    for p, w in zip(torch.split(probability, _TERMS, 1), torch.split(head.weight, _TERMS), strict=True):
        expected += p @ w
    own: Tensor = head.weight[targets].float()
    return ((expected[: len(states)] - own) / counts[:, None]).to(states.dtype)
