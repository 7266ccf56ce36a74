"""Next-token predictions on public text, one by one: whether two models predict the same, and which is right."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from appliance.evaluate.utility import Block

_ROWS = 4


@dataclass(frozen=True, slots=True)
class Predictions:
    """What a model predicts on blocks of text.

    Attributes:
      tokens: the likeliest next token at each place, int64 [blocks, places].
      right: whether it is the one that stands there, bool [blocks, places].
      loss: cross-entropy of each block, float64 [blocks], nat per token.
    """

    tokens: NDArray[np.int64]
    right: NDArray[np.bool_]
    loss: NDArray[np.float64]

    @property
    def accuracy(self) -> float:
        """Share of predictions that are right, in percent."""
        return float(self.right.mean()) * 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """What happened to the share of right predictions, in percentage points, with a 95 % interval over blocks."""

    points: float
    low: float
    high: float
    agreement: float


@torch.inference_mode()
def predict(body: Any, logits: Callable[[Tensor], Tensor], blocks: Sequence[Block]) -> Predictions:
    """Predict every token of the blocks but the first of each.

    Args:
      body: token ids in, last hidden states out.
      logits: from states [n, hidden] to logits [n, vocabulary].
      blocks: all of one length.
    """
    device = body.get_input_embeddings().weight.device
    tokens, right, loss = [], [], []
    for start in range(0, len(blocks), _ROWS):
        ids = torch.tensor([block.ids for block in blocks[start : start + _ROWS]], device=device)
        states = body(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        for row, target in zip(states, ids[:, 1:], strict=True):
            scores = logits(row).float()
            found = scores.argmax(dim=-1)
            tokens.append(found.cpu())
            right.append((found == target).cpu())
            own = scores.gather(1, target[:, None])[:, 0]
            loss.append(float((torch.logsumexp(scores, dim=-1) - own).double().mean()))
    return Predictions(torch.stack(tokens).numpy(), torch.stack(right).numpy(), np.array(loss))


def shift(before: Predictions, after: Predictions) -> Shift:
    """Compare two models on the same blocks, paired; Student's t over blocks, whose tokens depend on each other.

    The interval is never shorter than what n predictions that all agree still leave open, -ln(0.025) / n each way (the
    "rule of three" for both ends): few predictions without a difference do not show that there is none.
    """
    from scipy.stats import t

    each = (after.right.mean(axis=1) - before.right.mean(axis=1)) * 100
    seen = float(t.ppf(0.975, len(each) - 1)) * float(each.std(ddof=1)) / math.sqrt(len(each))
    half = max(seen, -math.log(0.025) / before.right.size * 100)
    points = float(each.mean())
    agreement = float((before.tokens == after.tokens).mean()) * 100
    return Shift(points=points, low=points - half, high=points + half, agreement=agreement)
