"""LoRA whose backward pass writes per-record gradients: one autograd function, one flat buffer, no hooks.

For a target y = x W^T + s (x A^T) B^T with upstream gradient g, record i contributes

    G_A^i = v_i^T x_i   with v = s g B,        (G_B^i)^T = u_i^T g_i   with u = s x A^T,

the floating-point operations of ordinary LoRA. They go straight into views of one row of a flat float32 buffer;
A and B get no `.grad`. Row layout: for each target in order, A [r, in] and then B transposed [r, out] (the product
runs several times faster in that orientation), padded with zeros to a multiple of `BLOCK`. Where A is frozen (Sun
et al. 2024, "FFA-LoRA") only G_B is needed, and for that u, which is r / in of the size of x: x is not kept.

A quantised W is dequantised for each product, forward and backward alike, so that the gradient is that of the very
function that was computed. bitsandbytes' own INT8 product is not used: it quantises activations, and its outlier
columns are those in which any row of the batch is large.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from appliance.errors import ConfigInvalid, GateFailed

BLOCK = 1024
"""Rows of the gradient buffer are multiples of this many values; norms are summed over such blocks."""


class GradientBuffer:
    """Per-record gradients of the micro-batch in flight, [max_rows, width], kept between micro-batches.

    Args:
      parameters: trainable parameters P.
      max_rows: records that fit at once.
      device: where the model is.
      dtype: float32, or bfloat16 for half the memory; norms are taken of the values as they are stored.
    """

    def __init__(
        self, parameters: int, max_rows: int, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        self.parameters = parameters
        self.width = math.ceil(parameters / BLOCK) * BLOCK
        self.data = torch.zeros(max_rows, self.width, dtype=dtype, device=device)
        self.rows = 0
        self.reports: list[int] = []
        self._expected: list[int] = []

    def begin(self, rows: int, expected: Collection[int], sites: int) -> None:
        """Announce the next micro-batch; those expected of all sites must report exactly once before `finish`."""
        if rows > len(self.data):
            raise GateFailed("a micro-batch has more rows than the gradient buffer")
        self.rows = rows
        self.reports = [0] * sites
        self._expected = [int(index in expected) for index in range(sites)]

    def finish(self) -> Tensor:
        """Finish the gradients of the micro-batch, [rows, width] in the buffer's dtype.

        Raises:
          GateFailed: when a target did not report exactly once: its values would be stale or incomplete.
        """
        if self.reports != self._expected:
            raise GateFailed("a trainable parameter did not report its per-record gradient exactly once")
        return self.data[: self.rows]


class Site:
    """One adapted linear layer: its base, its A and B, and its place in a row of the gradient buffer.

    Attributes:
      offset, middle, end: A's gradient lies in [offset, middle), empty where A is frozen, B's in [middle, end).
    """

    def __init__(self, name: str, index: int, layer: Any, offset: int, freeze_a: bool = False) -> None:
        self.name = name
        self.index = index
        self.base: nn.Linear = layer.base_layer
        self.a: nn.Parameter = layer.lora_A["default"].weight
        self.b: nn.Parameter = layer.lora_B["default"].weight
        self.scale = float(layer.scaling["default"])
        self.freeze_a = freeze_a
        self.rank, self.offset = self.a.shape[0], offset
        self.middle = offset + (0 if freeze_a else self.a.numel())
        self.end = self.middle + self.b.numel()
        self.buffer: GradientBuffer | None = None
        self.weight = dense(self.base)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the adapted layer; replaces PEFT's forward."""
        result: Tensor = _PerRecordLora.apply(x, self.a, self.b, self)  # type: ignore[no-untyped-call]
        return result

    def write(self, u: Tensor, v: Tensor | None, x: Tensor | None, g: Tensor) -> None:
        """Write this site's per-record gradients.

        Args:
          u: s x A^T, [N, r] with N = rows * length.
          v: s g B, [N, r]; None where A is frozen.
          x: the input, [N, in]; None where A is frozen.
          g: the upstream gradient, [N, out].
        """
        buffer = self.buffer
        if buffer is None or g.shape[0] % buffer.rows:
            raise GateFailed(f"{self.name} was differentiated outside of a micro-batch of records")
        rows = buffer.rows
        buffer.reports[self.index] += 1
        for start, end, left, right in ((self.offset, self.middle, v, x), (self.middle, self.end, u, g)):
            if left is None or right is None:
                continue
            out = buffer.data[:rows, start:end].view(rows, self.rank, -1)
            left, right = left.view(rows, -1, self.rank).transpose(1, 2), right.view(rows, -1, right.shape[-1])
            if out.dtype == right.dtype:
                torch.bmm(left, right, out=out)
            else:
                out.copy_(torch.bmm(left, right))


class _PerRecordLora(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, site: Site) -> Tensor:
        # A and B are inputs only so that autograd calls backward even where x needs no gradient (the first layer).
        a, b = a.to(x.dtype), b.to(x.dtype)
        y = functional.linear(x, site.weight(x.dtype), site.base.bias)
        u = functional.linear(x, a).mul_(site.scale)
        y.view(-1, y.shape[-1]).addmm_(u.view(-1, u.shape[-1]), b.t())
        ctx.save_for_backward(u, a, b, *(() if site.freeze_a else (x,)))
        ctx.site = site
        return y

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        u, a, b, *kept = ctx.saved_tensors
        site: Site = ctx.site
        g = upstream[0].reshape(-1, b.shape[0])
        v = (g @ b).mul_(site.scale) if kept or ctx.needs_input_grad[0] else None
        x = kept[0].reshape(-1, a.shape[1]) if kept else None
        site.write(u.view(-1, u.shape[-1]), v if kept else None, x, g)
        if not ctx.needs_input_grad[0] or v is None:
            return None, None, None, None
        grad_x = (g @ site.weight(g.dtype)).addmm_(v, a)
        return grad_x.view(*u.shape[:-1], a.shape[1]), None, None, None


def dense(base: nn.Linear) -> Callable[[torch.dtype], Tensor]:
    """Say how to get the weight [out, in] of a base layer: as it is, or dequantised by bitsandbytes at each call.

    Raises:
      ConfigInvalid: INT8 with an outlier threshold, which would make one record's output depend on the others'.
    """
    if not is_quantised(base):
        return lambda dtype: base.weight
    import bitsandbytes

    layer: Any = base
    if isinstance(layer, bitsandbytes.nn.Linear8bitLt):
        if layer.state.threshold != 0:
            raise ConfigInvalid("INT8 with outlier columns couples records; the threshold must be 0", where="base")
        return lambda dtype: _from_int8(layer, dtype)
    return lambda dtype: _from_nf4(layer, dtype)


def is_quantised(layer: nn.Module) -> bool:
    """Tell whether a layer is a quantised one of bitsandbytes, without importing that for a model that has none."""
    bitsandbytes: Any = sys.modules.get("bitsandbytes")
    return bitsandbytes is not None and type(layer) in (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt)


def _from_int8(layer: Any, dtype: torch.dtype) -> Tensor:
    # One scale for each output row; the product is bitsandbytes' own of training on the CPU.
    scale = layer.state.SCB if layer.state.SCB is not None else layer.weight.SCB
    return layer.weight.data.to(dtype).mul_(scale[:, None] / 127.0)  # type: ignore[no-any-return]


def _from_nf4(layer: Any, dtype: torch.dtype) -> Tensor:
    from bitsandbytes.functional import dequantize_4bit

    state = layer.weight.quant_state
    if getattr(state, "packing_format_for_cpu", False):
        raise GateFailed("a quantised layer was repacked for inference during training")
    return dequantize_4bit(layer.weight.data.view(-1, 1), state).to(dtype)  # type: ignore[no-any-return]


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
        """The trained A and B of every site, in the order of the layout."""
        return [p for site in self.sites for p in ((site.b,) if site.freeze_a else (site.a, site.b))]

    def bind(self, buffer: GradientBuffer | None) -> None:
        """Send the per-record gradients of every site to `buffer`."""
        for site in self.sites:
            site.buffer = buffer

    def views(self, flat: Tensor) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Pair each parameter with its part of a flat vector [>= P], as a view of the parameter's shape."""
        for site in self.sites:
            if not site.freeze_a:
                yield site.a, flat[site.offset : site.middle].view(site.a.shape)
            yield site.b, flat[site.middle : site.end].view(site.rank, -1).t()

    def flatten(self, values: Sequence[Tensor]) -> Tensor:
        """Flatten one tensor per trainable parameter, the inverse of `views`: float32 [P]."""
        flat = torch.empty(self.parameters, dtype=torch.float32, device=values[0].device)
        for (_, view), value in zip(self.views(flat), values, strict=True):
            view.copy_(value)
        return flat
