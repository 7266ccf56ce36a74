"""What adapter and watermark do to the loss on public text: no privacy is spent, nothing private is read."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.evaluate.losses import Tokens
from appliance.evaluate.public_text import halves

BLOCK = 128
"""Predictions in a block; the interval is over blocks, since tokens of one block are not independent."""

Losses = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive tokens of the public text; every one but the first is predicted."""

    ids: tuple[int, ...]

    @property
    def positions(self) -> range:
        """Positions whose prediction counts."""
        return range(len(self.ids) - 1)

    @property
    def length(self) -> int:
        """Length of the row."""
        return len(self.ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Relative change of the loss in percent, with a paired 95 % interval over blocks."""

    percent: float
    low: float
    high: float


def blocks(tokenizer: Any, predictions: int) -> list[Block]:
    """Spread blocks evenly over the second half of the public text, which nothing is fitted on.

    Args:
      tokenizer: the base model's tokenizer.
      predictions: next-token predictions that are asked for; rounded up to whole blocks, and cut to what there is.
    """
    ids = tokenizer(halves()[1], add_special_tokens=False, verbose=False)["input_ids"]
    count = max(2, min(math.ceil(predictions / BLOCK), (len(ids) - 1) // BLOCK))
    last = len(ids) - 1 - BLOCK
    starts = [last * number // (count - 1) for number in range(count)]
    return [Block(tuple(ids[start : start + BLOCK + 1])) for start in starts]


def block_losses(tokenizer: Any, predictions: int, measure: Callable[[list[Tokens]], Losses]) -> Losses:
    """Measure the loss of every block, float64 [blocks, 1 + adapters], nat per token; base first."""
    return measure(list(blocks(tokenizer, predictions)))


def relative_change(before: Losses, after: Losses) -> Change:
    """Take the mean of `after - before` over the mean of `before`, paired by block; Student's t over blocks.

    The mean of `before` is taken as known: its own error changes the ratio by a share that is far below the interval.
    """
    from scipy.stats import t

    relative = (after - before) / before.mean() * 100
    mean = float(relative.mean())
    half = float(t.ppf(0.975, len(relative) - 1)) * float(relative.std(ddof=1)) / math.sqrt(len(relative))
    return Change(percent=mean, low=mean - half, high=mean + half)
