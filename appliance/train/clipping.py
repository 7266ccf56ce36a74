"""Clip, round to the grid, sum exactly. Why the sensitivity is at most C: see `appliance.privacy.sampler`."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from appliance.privacy.sampler import GUARD, grid
from appliance.train.lora import BLOCK

_COLUMNS = 16 * BLOCK  # a block of this many columns and some rows stays in the cache
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
        """Clips, rounds and adds rows [n, width], one row per unit. Non-finite rows are set to zero."""
        factors = self.factors(gradients)[:, None]
        ones = torch.ones(len(gradients), dtype=torch.float64, device=gradients.device)
        for start in range(0, gradients.shape[1], _COLUMNS):
            block = gradients[:, start : start + _COLUMNS] * factors
            self._sum[start : start + _COLUMNS] += ones @ block.round_().double()

    def factors(self, gradients: Tensor) -> Tensor:
        """What each row is multiplied by before it is rounded to integers, float32 [n]. Zeroes non-finite rows."""
        found = norms(gradients)
        scale = self._bound / (found + _STABILITY) if self._normalised else (self._bound / found).clamp(max=1.0)
        return (scale / self.grid).float()

    @property
    def total(self) -> Tensor:
        """The running sum itself, float64 [width]: ranks add theirs to it before it is taken."""
        return self._sum

    def take(self) -> Tensor:
        """The sum so far, whole numbers in float64 [P], and starts anew."""
        taken = self._sum[: self._parameters].clone()
        self._sum.zero_()
        return taken


def norms(gradients: Tensor) -> Tensor:
    """The L2 norm of each row of [n, width], float64 [n]; rows whose norm is not finite are set to zero in place."""
    blocks = [row.view(-1, BLOCK) for row in gradients]
    # Row by row in blocks of one shape, so that a norm does not depend on how many rows there are.
    squares = [torch.linalg.vector_norm(b, dim=1, dtype=torch.float32).double().square().sum() for b in blocks]
    found = torch.stack(squares).sqrt()
    for row in torch.nonzero(~torch.isfinite(found)).flatten().tolist():
        gradients[row] = 0
        found[row] = 0
    return found
