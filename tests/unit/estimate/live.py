"""Counts what a computation holds, allocation by allocation, on tensors that have a shape and no values.

On torch's device "meta" every operation allocates as on a GPU, in the same order and for as long, and computes nothing:
a model of any size can be followed anywhere. What a kernel takes for itself is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_ROUND = 512  # to so many bytes the allocator of a GPU rounds


class Live(TorchDispatchMode):
    """Within the block every storage that is made is counted until it is freed.

    Attributes:
      bytes: what is there now.
      peak: the most that was there at once; may be set back.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._known: dict[int, Any] = {}

    def add(self, tensor: Tensor) -> None:
        """Counts a tensor that was there before."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, -(-storage.nbytes() // _ROUND) * _ROUND
        if key in self._known:
            return

        def gone(_: Any) -> None:
            self.bytes -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, gone)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return True  # transformers asks whether sequences are packed; positions are consecutive, so they are not
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return out


@contextmanager
def fused_attention() -> Iterator[None]:
    """Attention by the kernels that a GPU takes where they can: flash, and for unequal widths the efficient one."""

    def attention(q: Tensor, k: Tensor, v: Tensor, *_: Any, is_causal: bool = False, **more: Any) -> Tensor:
        scale = more.get("scale")
        if q.shape[-1] == v.shape[-1] and q.dtype == torch.bfloat16:
            out = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, is_causal, scale=scale)
        else:
            out = torch.ops.aten._scaled_dot_product_efficient_attention(
                q, k, v, None, True, 0.0, is_causal, scale=scale
            )
        found: Tensor = out[0]
        return found

    with patch.object(functional, "scaled_dot_product_attention", attention):
        yield
