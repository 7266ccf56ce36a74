"""LoRA whose backward pass writes per-record gradients: one autograd function, one flat buffer, no hooks.

For a target y = x W^T + s (x A^T) B^T with upstream gradient g, record i contributes

    G_A^i = v_i^T x_i   with v = s g B,        (G_B^i)^T = u_i^T g_i   with u = s x A^T,

the floating-point operations of ordinary LoRA. They go straight into views of one row of a flat float32 buffer;
A and B get no `.grad`. Row layout: for each target in order, A [r, in] and then B transposed [r, out] (the product
runs several times faster in that orientation), padded with zeros to a multiple of `BLOCK`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from appliance.errors import GateFailed

BLOCK = 1024
"""Rows of the gradient buffer are multiples of this many values; norms are summed over such blocks."""

ATTENTION = (
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "q_a_proj",
    "q_b_proj",
    "kv_a_proj_with_mqa",
    "kv_b_proj",
)


class GradientBuffer:
    """Per-record gradients of the micro-batch in flight, float32 [max_rows, width], kept between micro-batches.

    Args:
      parameters: trainable parameters P.
      max_rows: records that fit at once.
      device: where the model is.
    """

    def __init__(self, parameters: int, max_rows: int, device: torch.device) -> None:
        self.parameters = parameters
        self.width = math.ceil(parameters / BLOCK) * BLOCK
        self.data = torch.zeros(max_rows, self.width, dtype=torch.float32, device=device)
        self.rows = 0
        self.reports: list[int] = []

    def begin(self, rows: int, sites: int) -> None:
        """Announces the next micro-batch; every site must then report exactly once before `finish`."""
        if rows > len(self.data):
            raise GateFailed("a micro-batch has more rows than the gradient buffer")
        self.rows = rows
        self.reports = [0] * sites

    def finish(self) -> Tensor:
        """The gradients of the micro-batch, float32 [rows, width].

        Raises:
          GateFailed: when a target did not report exactly once: its values would be stale or incomplete.
        """
        if any(count != 1 for count in self.reports):
            raise GateFailed("a trainable parameter did not report its per-record gradient exactly once")
        return self.data[: self.rows]


class Site:
    """One adapted linear layer: its base, its A and B, and its place in a row of the gradient buffer."""

    def __init__(self, name: str, index: int, layer: Any, offset: int) -> None:
        self.name = name
        self.index = index
        self.base: nn.Linear = layer.base_layer
        self.a: nn.Parameter = layer.lora_A["default"].weight
        self.b: nn.Parameter = layer.lora_B["default"].weight
        self.scale = float(layer.scaling["default"])
        self.rank, self.offset = self.a.shape[0], offset
        self.end = offset + self.a.numel() + self.b.numel()
        self.buffer: GradientBuffer | None = None

    def forward(self, x: Tensor) -> Tensor:
        """The adapted layer; replaces PEFT's forward."""
        result: Tensor = _PerRecordLora.apply(x, self.base.weight, self.base.bias, self.a, self.b, self)  # type: ignore[no-untyped-call]
        return result

    def write(self, u: Tensor, v: Tensor, x: Tensor, g: Tensor) -> None:
        """Writes this site's per-record gradients.

        Args:
          u: s x A^T, [N, r] with N = rows * length.
          v: s g B, [N, r].
          x: the input, [N, in].
          g: the upstream gradient, [N, out].
        """
        buffer = self.buffer
        if buffer is None or x.shape[0] % buffer.rows:
            raise GateFailed(f"{self.name} was differentiated outside of a micro-batch of records")
        rows, middle = buffer.rows, self.offset + self.a.numel()
        buffer.reports[self.index] += 1
        for start, end, left, right in ((self.offset, middle, v, x), (middle, self.end, u, g)):
            out = buffer.data[:rows, start:end].view(rows, self.rank, -1)
            left, right = left.view(rows, -1, self.rank).transpose(1, 2), right.view(rows, -1, right.shape[-1])
            if out.dtype == right.dtype:
                torch.bmm(left, right, out=out)
            else:
                out.copy_(torch.bmm(left, right))


class _PerRecordLora(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, site: Site) -> Tensor:
        # A and B are inputs only so that autograd calls backward even where x needs no gradient (the first layer).
        a, b = a.to(x.dtype), b.to(x.dtype)
        y = functional.linear(x, w, bias)
        u = functional.linear(x, a).mul_(site.scale)
        y.view(-1, y.shape[-1]).addmm_(u.view(-1, u.shape[-1]), b.t())
        ctx.save_for_backward(x, u, w, a, b)
        ctx.site = site
        return y

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, u, w, a, b = ctx.saved_tensors
        g, flat_x = upstream[0].reshape(-1, w.shape[0]), x.reshape(-1, w.shape[1])
        v = (g @ b).mul_(ctx.site.scale)
        ctx.site.write(u.view(-1, u.shape[-1]), v, flat_x, g)
        grad_x = (g @ w).addmm_(v, a).view_as(x) if ctx.needs_input_grad[0] else None
        return grad_x, None, None, None, None, None


@dataclass(frozen=True)
class Adapter:
    """A model with its LoRA sites, in the order of the flat layout."""

    model: nn.Module
    peft_model: Any
    sites: tuple[Site, ...]

    @property
    def parameters(self) -> int:
        """The number of trainable parameters P."""
        end: int = self.sites[-1].end
        return end

    @property
    def trainable(self) -> list[nn.Parameter]:
        """A and B of every site, in the order of the layout."""
        return [p for site in self.sites for p in (site.a, site.b)]

    def bind(self, buffer: GradientBuffer | None) -> None:
        """Sends the per-record gradients of every site to `buffer`."""
        for site in self.sites:
            site.buffer = buffer

    def views(self, flat: Tensor) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Each parameter with its part of a flat vector [>= P], as a view of the parameter's shape."""
        for site in self.sites:
            middle = site.offset + site.a.numel()
            yield site.a, flat[site.offset : middle].view(site.a.shape)
            yield site.b, flat[middle : site.end].view(site.rank, -1).t()

    def flatten(self, values: Sequence[Tensor]) -> Tensor:
        """The inverse of `views` for one tensor per trainable parameter: float32 [P]."""
        flat = torch.empty(self.parameters, dtype=torch.float32, device=values[0].device)
        for (_, view), value in zip(self.views(flat), values, strict=True):
            view.copy_(value)
        return flat
