"""Clip, round to the grid, sum exactly. Why the sensitivity is at most C: see `appliance.privacy.sampler`."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from appliance.privacy.sampler import GUARD, grid
from appliance.train.lora import BLOCK

_COLUMNS = 16 * BLOCK  # a block of this many columns and some rows stays in a CPU's cache
_VALUES = 1 << 25  # so many float32 values at once are work enough for a GPU
_STABILITY = 0.01  # of AUTO-S, Bu et al. 2023, "Automatic Clipping"


class ExactSum:
    """The running sum of clipped per-unit gradients of one logical step, in grid units.

    Every clipped gradient is a vector of integers and the sum is an integer vector in float64, exact below 2^53, so
    it does not depend on order, on the partition into micro-batches, or on which other records are there.

    Args:
      max_grad_norm: the clip norm C.
      clipping: "fixed" scales by min(1, C'/norm), "normalised" by C'/(norm + 0.01), with C' = C (1 - 2^-12).
      parameters: trainable parameters P.
      width: P rounded up to whole blocks.
      device: where the gradients are.
    """

    def __init__(
        self,
        max_grad_norm: float,
        clipping: Literal["fixed", "normalised"],
        parameters: int,
        width: int,
        device: torch.device,
    ) -> None:
        self.grid = grid(max_grad_norm, parameters)
        self._bound = max_grad_norm * (1 - GUARD)
        self._normalised = clipping == "normalised"
        self._parameters = parameters
        self._sum = torch.zeros(width, dtype=torch.float64, device=device)

    def add(self, gradients: Tensor) -> None:
        """Clip, round and add rows [n, width], one row per unit. A row that is not finite adds nothing."""
        factors = self.factors(gradients)[:, None]
        # On a GPU the question would make the host wait.
        maybe_not_finite = gradients.device.type != "cpu" or not factors.all()
        step = _COLUMNS if gradients.device.type == "cpu" else max(BLOCK, _VALUES // len(gradients) // BLOCK * BLOCK)
        for start in range(0, gradients.shape[1], step):
            whole = (gradients[:, start : start + step] * factors).round_()
            if maybe_not_finite:  # a factor of zero times what is not finite is not zero
                torch.nan_to_num_(whole, nan=0.0, posinf=0.0, neginf=0.0)
            self._sum[start : start + step] += whole.sum(0, dtype=torch.float64)

    def factors(self, gradients: Tensor) -> Tensor:
        """Find what each row is multiplied by before it is rounded to integers, float32 [n]; 0 for rows not finite."""
        found = norms(gradients)
        scale = self._bound / (found + _STABILITY) if self._normalised else (self._bound / found).clamp(max=1.0)
        return torch.where(torch.isfinite(found), scale / self.grid, 0.0).float()

    @property
    def total(self) -> Tensor:
        """The running sum itself, float64 [width]: ranks add theirs to it before it is taken."""
        return self._sum

    def take(self) -> Tensor:
        """Take the sum so far, whole numbers in float64 [P], and start anew."""
        taken = self._sum[: self._parameters].clone()
        self._sum.zero_()
        return taken


def norms(gradients: Tensor) -> Tensor:
    """Take the L2 norm of each row of [n, width], float64 [n]."""
    if gradients.device.type == "cpu":
        # Row by row in blocks of one shape, so that a norm does not depend on how many rows there are.
        squares = [_squares(row.view(1, -1, BLOCK)).sum() for row in gradients]
        return torch.stack(squares).sqrt()
    return _squares(gradients.view(len(gradients), -1, BLOCK)).sum(1).sqrt()


def finite(gradients: Tensor) -> Tensor:
    """Put zeros in place of the rows of [n, width], float32, whose norm is not finite."""
    return torch.where(torch.isfinite(norms(gradients))[:, None], gradients.float(), 0.0)


def _squares(blocks: Tensor) -> Tensor:
    found: Tensor = torch.linalg.vector_norm(blocks, dim=2, dtype=torch.float32)
    return found.double().square()
