"""The gradient of each record's loss with respect to its hidden states.

The loss of a record is the mean cross-entropy over its own supervised tokens, so no record's gradient depends on how
many tokens another one has (the batch-mean loss of common libraries does). Logits exist only at supervised
positions, in pieces, in float32; the gradient is written down directly, (softmax - one-hot) W, times the slope of
what the model does to its logits (`train.logits`), so the loss itself, which is private, is never computed.

A piece always has the same number of rows, the last one filled up with zeros: matrix products of one shape treat every
row alike (`train.coupling` looks), while products of as many rows as a record or a micro-batch has tokens need not, and
one product for each short record streams the whole vocabulary through the cache for a handful of rows: with
15 supervised tokens a record that took more than twice as long as pieces of 128.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from appliance.train.encode import Encoded
from appliance.train.logits import Logits

# Vocabulary entries summed in one product. Some kernels add up all of the vocabulary one by one, and what the targets'
# own embeddings leave of the sum is small; with short sums and the target apart, ten times less is lost.
_TERMS = {"cpu": 4096, "cuda": 32768}


def piece_rows(device: torch.device) -> int:
    """Choose how many supervised positions' logits exist at once: more gains nothing on a CPU, enough fill a GPU.

    On a GPU 1,024 took up to 1.31 of plain LoRA's memory at small micro-batches. At 384 none of the shapes that
    `tests/unit/estimate/test_estimate_peft.py` counts takes more than 1.1.
    """
    return 128 if device.type == "cpu" else 384


@dataclass(frozen=True, slots=True)
class Supervised:
    """Where a micro-batch is supervised, as numbers that travel to the device in one piece with its token ids.

    Attributes:
      groups: how many positions the records have that share their pieces, group by group.
      rows: rows times padded length of the micro-batch.
      numbers: position in the flattened micro-batch, target, and divisor of every supervised position; then for
        every place of the flattened micro-batch the number of its position, or of the zero behind the last.
    """

    groups: tuple[int, ...]
    rows: int
    numbers: Sequence[int] | Tensor

    def on(self, numbers: Tensor) -> Supervised:
        """Put its numbers on the device, as an int64 tensor."""
        return replace(self, numbers=numbers)

    def parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Split into positions, targets, divisors [n], and the place of each flattened row in them [rows]."""
        numbers = self.numbers if isinstance(self.numbers, Tensor) else torch.tensor(self.numbers)
        n = sum(self.groups)
        positions, targets, counts, places = torch.split(numbers, [n, n, n, self.rows])
        return positions, targets, counts, places


def find_supervised(batch: Sequence[Encoded], length: int, rows: int, *, shared: bool = True) -> Supervised:
    """Find where the records of a micro-batch are supervised.

    Args:
      batch: the records, record i in row i.
      length: padded length.
      rows: rows times length, those without a record included.
      shared: whether positions of several records may share a piece. Otherwise the shape of every product follows
        from one record alone, for kernels to which the row matters.
    """
    positions = [row * length + position for row, record in enumerate(batch) for position in record.positions]
    targets = [record.ids[position + 1] for record in batch for position in record.positions]
    counts = [len(record.positions) for record in batch for _ in record.positions]
    places = [len(positions)] * rows
    for number, position in enumerate(positions):
        places[position] = number
    groups = (len(positions),) if shared else tuple(len(record.positions) for record in batch)
    return Supervised(groups, rows, [*positions, *targets, *counts, *places])


@torch.no_grad()
def hidden_gradient(hidden: Tensor, logits: Logits, at: Supervised) -> Tensor:
    """Differentiate the sum of the records' losses by the hidden states.

    Args:
      hidden: last hidden states [rows, length, width], row i of record i; further rows are ignored.
      logits: the frozen language-model head, a linear layer without bias or with it, and what the model does around it.
      at: where the records are supervised.

    Returns:
      A tensor like `hidden`, zero wherever nothing is supervised.
    """
    positions, targets, counts, places = at.parts()
    flat = hidden.reshape(-1, hidden.shape[-1])
    found = flat.new_zeros(len(positions) + 1, flat.shape[-1])  # behind the last one stays a zero
    for piece in _pieces(at.groups, piece_rows(hidden.device)):
        states = flat.index_select(0, positions[piece])
        found[piece] = _piece(states, logits, targets[piece], counts[piece], piece_rows(hidden.device))
    return found.index_select(0, places).view(hidden.shape)


def _pieces(groups: Sequence[int], step: int) -> Iterator[slice]:
    start = 0
    for size in groups:
        for first in range(start, start + size, step):
            yield slice(first, min(first + step, start + size))
        start += size


def _piece(states: Tensor, logits: Logits, targets: Tensor, counts: Tensor, rows: int) -> Tensor:
    # (softmax - one-hot) T' W / count for [n, width], computed with so many rows; T' is 1 but for scale and cap.
    weight = logits.head.weight
    filled = functional.pad(states, (0, 0, 0, rows - len(states)))
    probability, slope = _softmax(filled, logits)
    expected = torch.zeros(filled.shape, dtype=torch.float32, device=states.device)
    terms = _TERMS["cpu" if states.device.type == "cpu" else "cuda"]
    for p, w in zip(torch.split(probability, terms, 1), torch.split(weight, terms), strict=True):
        expected += p @ w
    own: Tensor = weight.index_select(0, targets).float()
    if slope is not None:
        own = own * slope[: len(states)].gather(1, targets[:, None])
    gradient = (expected[: len(states)] - own) / counts[:, None]
    return (gradient if logits.before == 1 else gradient * logits.before).to(states.dtype)


def _softmax(states: Tensor, logits: Logits) -> tuple[Tensor, Tensor | None]:
    """Compute the probabilities, times the slope where there is one; nothing else of their size stays behind."""
    if logits.plain:
        return torch.softmax(logits(states), dim=-1).to(states.dtype), None
    found = logits(states)
    slope = logits.slope(found)
    return (torch.softmax(found, dim=-1) * slope).to(states.dtype), slope
