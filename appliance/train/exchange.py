"""Ranks as threads of one process: the group through which `train.engines.Several` talks in the self-test.

The sandbox of a self-test has no network, so gloo cannot run there. What is exchanged here is exchanged as gloo does
it: a sum arrives on the root, and whoever else gave to it keeps what he gave.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from torch import Tensor

_PATIENCE_S = 60.0


class Exchange:
    """Where the members of one group meet.

    Args:
      size: how many there are.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.given: list[Tensor | None] = [None] * size
        self._barrier = threading.Barrier(size)

    def member(self, rank: int) -> Member:
        """Give a rank its end."""
        return Member(self, rank)

    def meet(self) -> None:
        """Wait for all. Raises `RuntimeError`, as gloo does, when one has left or does not come."""
        self._barrier.wait(_PATIENCE_S)

    def leave(self) -> None:
        """Leave the others alone."""
        self._barrier.abort()


class Member:
    """One rank's end: the collectives of a process group that `Several` calls."""

    def __init__(self, exchange: Exchange, rank: int) -> None:
        self._exchange, self._rank = exchange, rank

    def wait(self) -> None:
        """Do nothing: every collective is done when it returns."""

    def broadcast(self, tensor: Tensor, root: int) -> Member:
        """Copy the root's tensor to all."""
        given = self._meet(tensor)
        if self._rank != root:
            tensor.copy_(given[root])
        self._exchange.meet()
        return self

    def reduce(self, tensor: Tensor, root: int) -> Member:
        """Add up all tensors on the root."""
        given = self._meet(tensor)
        if self._rank == root:
            for rank, other in enumerate(given):
                if rank != root:
                    tensor += other
        self._exchange.meet()
        return self

    def allgather(self, found: Sequence[Tensor], own: Tensor) -> Member:
        """Copy all tensors to all."""
        for target, other in zip(found, self._meet(own), strict=True):
            target.copy_(other)
        self._exchange.meet()
        return self

    def _meet(self, tensor: Tensor) -> list[Tensor]:
        self._exchange.given[self._rank] = tensor
        self._exchange.meet()
        return [given for given in self._exchange.given if given is not None]
