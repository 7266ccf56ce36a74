"""CUDA graphs of a model's forward and backward pass, one pair for each shape of micro-batch.

A small model's kernels take a GPU less time than its host needs to ask for them. Row counts are few (`train.rows`), so
shapes repeat: what was asked once is recorded and asked again at one stroke. A recording is used only if it gives the
bits of the calls that it was made of; where one cannot be made, the engine goes on without. Recordings hold memory of
their own (`estimate.gpu_memory`).
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_MOST = 64
"""Shapes that are recorded; each keeps its output and its input gradient on the GPU."""


@dataclass(frozen=True, slots=True)
class _Recording:
    """Two graphs and the tensors through which they are fed: ids and gradient in, hidden states out."""

    forward: Any
    backward: Any
    ids: Tensor
    hidden: Tensor
    gradient: Tensor


class Graphs:
    """Recordings of one model on one GPU, all in one pool of memory.

    Args:
      body: token ids [rows, length] in, last hidden states [rows, length, width] out; its backward pass writes the
        per-record gradients where the engine looks for them.
    """

    def __init__(self, body: Callable[[Tensor], Tensor]) -> None:
        self._body = body
        self._recordings: dict[tuple[int, ...], _Recording] = {}
        self._tried: set[tuple[int, ...]] = set()
        self._pool: Any = None
        self.refused = False

    def find(self, ids: Tensor) -> _Recording | None:
        """Find the recording for micro-batches of this shape, if there is one."""
        return self._recordings.get(tuple(ids.shape))

    def replay(self, found: _Recording, ids: Tensor, upstream: Callable[[Tensor], Tensor]) -> None:
        """Compute a micro-batch by its recording.

        Args:
          found: the recording.
          ids: int64 [rows, length] on the GPU.
          upstream: from the hidden states to their gradient.
        """
        found.ids.copy_(ids)
        found.forward.replay()
        found.gradient.copy_(upstream(found.hidden.detach()))
        found.backward.replay()

    def record(self, ids: Tensor, upstream: Callable[[Tensor], Tensor], gradients: Tensor) -> None:
        """Record a micro-batch that was just computed; from now on this shape is replayed if the bits are the same.

        Nothing of what was computed may be held any more: a graph cannot depend on work outside of it.

        Args:
          ids: int64 [rows, length] on the GPU.
          upstream: from the hidden states to their gradient.
          gradients: what the calls themselves gave, a view of what the recording will write.
        """
        if self.refused or tuple(ids.shape) in self._tried or len(self._recordings) >= _MOST:
            return
        self._tried.add(tuple(ids.shape))
        expected = gradients.clone()
        try:
            made = self._record(ids)
            gradients.zero_()
            self.replay(made, ids, upstream)
        except (RuntimeError, torch.AcceleratorError):
            self.refused = True
            gradients.copy_(expected)
            return
        if torch.equal(gradients, expected):
            self._recordings[tuple(ids.shape)] = made
        else:
            self.refused = True
            gradients.copy_(expected)

    def forget(self) -> None:
        """Give back the memory of all recordings."""
        self._recordings.clear()
        self._pool = None

    def _record(self, ids: Tensor) -> _Recording:
        torch.cuda.empty_cache()  # the recording gets memory of its own
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        own = ids.clone()
        with _uncollected():
            with torch.cuda.graph(forward, pool=self._pool):
                hidden = self._body(own)
            gradient = torch.zeros_like(hidden)
            with torch.cuda.graph(backward, pool=self._pool):
                torch.autograd.backward(hidden, gradient)
        return _Recording(forward, backward, own, hidden.detach(), gradient)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keep the collector out: graphs of a former engine that it would free now would break the recording."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
