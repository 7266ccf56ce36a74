"""Routed experts for one record at a time.

An expert multiplies all tokens that were sent to it at once, so how many rows its product has follows from the routing
of every record in the micro-batch, and with it which kernel computes it and how a record's tokens are rounded. Given
one record's tokens after the other's, every product's shape follows from that record.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class RoutedExperts:
    """The experts of one model, in whose place their computation by record is put.

    Args:
      model: changed in place; a model without experts stays as it is.

    Attributes:
      rows: records of the micro-batch that is about to be computed.
    """

    def __init__(self, model: nn.Module) -> None:
        self.rows = 1
        for module in model.modules():
            if any(parameter.dim() == 3 for parameter in module.parameters(recurse=False)):
                # What an earlier engine put there is not put on top of.
                whole = getattr(module.forward, "whole", module.forward)
                module.forward = self._by_record(whole)

    def _by_record(self, whole: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def forward(hidden: Tensor, *routing: Tensor, **more: Any) -> Tensor:
            """Compute tokens [rows * length, width], each by its experts and with their weights."""
            if self.rows == 1 or hidden.shape[0] % self.rows:
                return whole(hidden, *routing, **more)
            named = {name: _parts(value, hidden, self.rows) for name, value in more.items()}
            parts = zip(*(_parts(value, hidden, self.rows) for value in (hidden, *routing)), strict=True)
            found = [whole(*part, **{k: v[row] for k, v in named.items()}) for row, part in enumerate(parts)]
            return torch.cat(found)

        forward.whole = whole  # type: ignore[attr-defined]
        return forward


def _parts(value: Any, hidden: Tensor, rows: int) -> list[Any]:
    """Give each record its value: its part of what has a row for every token, else the value itself."""
    if isinstance(value, Tensor) and value.dim() and value.shape[0] == hidden.shape[0]:
        return list(value.chunk(rows))
    return [value] * rows
