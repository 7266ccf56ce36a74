"""The DP optimiser step in Opacus' order, around the exact sum and the discrete noise."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.optimizers import DPOptimizer
from torch import Tensor

from appliance.errors import GateFailed
from appliance.jobs.plan import PrivacyPlan
from appliance.train.clipping import ExactSum
from appliance.train.lora import Adapter


class Noise(Protocol):
    """Where integer noise comes from."""

    def begin(self, count: int) -> None:
        """Begin to draw what the next `draw` will return, where that saves time; a source need not."""
        return

    def draw(self, count: int) -> NDArray[np.int64]:
        """Draw `count` independent values in grid units."""
        ...


class ExactDPOptimizer(DPOptimizer):  # type: ignore[misc]
    """`opacus.optimizers.DPOptimizer` over AdamW without weight decay.

    What is overridden: clipping has happened in the engine, so `clip_and_accumulate` only takes the exact sum;
    `add_noise` adds integers to integers, once per logical step. The divisor stays Opacus': the public
    expected_batch_size. Use `release` and then `apply`; `step` refuses, because the release has to be written and
    journaled between the two.

    Args:
      adapter: whose A and B are trained.
      total: the engine's exact sum.
      noise: draws in grid units with the standard deviation noise_multiplier * max_grad_norm / grid.
      plan: noise multiplier, clip norm and expected batch size.
      lr: learning rate of AdamW.
    """

    def __init__(self, adapter: Adapter, total: ExactSum, noise: Noise, plan: PrivacyPlan, lr: float) -> None:
        super().__init__(
            torch.optim.AdamW(adapter.trainable, lr=lr, weight_decay=0.0),
            noise_multiplier=plan.noise_multiplier,
            max_grad_norm=plan.max_grad_norm,
            expected_batch_size=plan.expected_batch_size,
        )
        self._adapter = adapter
        self._total = total
        self._noise = noise
        self._summed: Tensor | None = None
        self._noised: Tensor | None = None

    @property
    def grad_samples(self) -> list[Tensor]:
        """Never empty: Opacus would take an empty list for a step without privacy and skip the noise."""
        return [self._adapter.trainable[0]]

    @property
    def accumulated_iterations(self) -> int:
        """One: the divisor must not follow how a logical batch was split."""
        return 1

    def begin_noise(self) -> None:
        """Let the noise of the step that follows be drawn while its gradients are computed."""
        self._noise.begin(self._adapter.parameters)

    def clip_and_accumulate(self) -> None:
        """Take the sum of the clipped gradients, which an empty batch leaves at zero."""
        self._summed = self._total.take()

    def add_noise(self) -> None:
        """Add the noise in whole grid units and only then leave the integers."""
        if self._summed is None:
            raise GateFailed("noise was asked for without a fresh sum")
        noise = torch.from_numpy(self._noise.draw(len(self._summed))).to(self._summed.device)
        self._noised = ((self._summed.to(torch.int64) + noise).double() * self._total.grid).float()
        self._summed = None
        self._set_gradients(self._noised)

    def release(self) -> Tensor:
        """Run the step up to the noise (Opacus' `pre_step`).

        Returns:
          The noised sum of the clipped gradients, float32 [P]: what the mechanism releases. It is not applied yet.
        """
        self.pre_step()
        if self._noised is None:
            raise GateFailed("a step went on without noise")
        released, self._noised = self._noised, None
        return released

    def follow(self) -> Tensor:
        """Drop the local sum, on every rank but the first, where it was sent, and count the step.

        Returns:
          Zeros, float32 [P]: the shape of the release that is about to come from the first rank.
        """
        dropped = self._total.take()
        if self.step_hook:
            self.step_hook(self)
        return torch.zeros(len(dropped), device=dropped.device)

    def apply(self, released: Tensor) -> None:
        """Apply a release, this step's or a journaled one: divide by expected_batch_size and step AdamW."""
        self._set_gradients(released.to(self._adapter.trainable[0].device))
        self.scale_grad()
        self.original_optimizer.step()
        self.zero_grad(set_to_none=True)

    def step(self, closure: Any = None) -> None:
        """Refuse: a release is written down before it is applied."""
        raise GateFailed("a release has to be journaled before it is applied")

    def _set_gradients(self, flat: Tensor) -> None:
        for parameter, view in self._adapter.views(flat):
            parameter.grad = view.clone(memory_format=torch.contiguous_format)
