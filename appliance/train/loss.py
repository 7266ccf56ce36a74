"""The gradient of a record's loss with respect to its hidden states, one record at a time.

The loss of a record is the mean cross-entropy over its own supervised tokens, so no record's gradient depends on how
many tokens another one has (the batch-mean loss of common libraries does). Logits exist only at supervised
positions, in pieces, in float32; the gradient is written down directly, (softmax - one-hot) W, so the loss
itself, which is private, is never computed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from appliance.train.encode import Encoded

_PIECE = 1 << 24  # logits that exist at once
# Vocabulary entries summed in one product. Some kernels add up all of the vocabulary one by one, and what the targets'
# own embeddings leave of the sum is small; with short sums and the target apart, ten times less is lost.
_TERMS = 4096


@torch.no_grad()
def hidden_gradient(hidden: Tensor, head: Any, batch: list[Encoded]) -> Tensor:
    """d(sum of the records' losses) / d(hidden).

    Args:
      hidden: last hidden states [rows, length, width], row i of record i; further rows are ignored.
      head: the frozen language-model head, a linear layer without bias or with it.
      batch: the records.

    Returns:
      A tensor like `hidden`, zero wherever nothing is supervised.
    """
    gradient = torch.zeros_like(hidden)
    for row, record in enumerate(batch):
        if record.positions:
            positions = torch.tensor(record.positions, device=hidden.device)
            targets = torch.tensor(record.ids, device=hidden.device)[positions + 1]
            gradient[row, positions] = _record_gradient(hidden[row, positions], head, targets)
    return gradient


def _record_gradient(states: Tensor, head: Any, targets: Tensor) -> Tensor:
    count, step = len(targets), max(1, _PIECE // head.weight.shape[0])
    parts = []
    for start in range(0, count, step):
        part, target = states[start : start + step], targets[start : start + step]
        probability = torch.softmax(head(part).float(), dim=-1).to(part.dtype)
        expected = sum(
            (p @ w).float()
            for p, w in zip(torch.split(probability, _TERMS, 1), torch.split(head.weight, _TERMS), strict=True)
        )
        parts.append(((expected - head.weight[target].float()) / count).to(part.dtype))
    return torch.cat(parts)
