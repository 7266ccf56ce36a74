"""CUDA graphs without a GPU: what was asked within a block is asked again, of the same tensors and into the same ones.

As on a GPU a replay reads what its inputs hold by then, writes where the recording wrote, and knows nothing of Python.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Recorded(TorchDispatchMode):
    """Stands for `torch.cuda.CUDAGraph`.

    Attributes:
      steps: (operation, arguments, what it gave), in the order in which they were asked.
      replays: how often this was replayed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[Any, Any, Any, Any]] = []
        self.replays = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.steps.append((func, args, kwargs or {}, out))
        return out

    @torch.no_grad()
    def replay(self) -> None:
        """Ask everything again."""
        self.replays += 1
        for func, args, kwargs, out in self.steps:
            for old, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, Tensor) and old.untyped_storage()._cdata != new.untyped_storage()._cdata:
                    old.copy_(new)


def pretend_graphs(monkeypatch: pytest.MonkeyPatch, kind: type[Recorded] = Recorded) -> list[Recorded]:
    """Lets `train.graphs` record without a GPU; returns the graphs that are made, forward and backward in turn."""
    made: list[Recorded] = []

    def graph() -> Recorded:
        made.append(kind())
        return made[-1]

    @contextmanager
    def recording(graph: Recorded, pool: Any) -> Iterator[None]:
        assert pool is not None
        with graph:
            yield

    for name, stand_in in {"graph_pool_handle": object, "CUDAGraph": graph, "graph": recording}.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return made
