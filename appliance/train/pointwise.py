"""Pointwise functions record by record, where a CPU's threads would make a record's bits follow its place.

torch cuts a pointwise operation into one piece for each thread. What a piece has left over behind its last whole vector
is computed by scalar code, and that rounds `exp` and what is made of it (SiLU, GELU, sigmoid) differently. Where
the pieces end follows from the size of the whole micro-batch, so with more than two threads the last bits of a record
follow its neighbours' number. Computed for one record at a time, the pieces follow from the record's own length.

Operations whose result IEEE 754 rounds once, such as sums, products and roots, are the same in vector and scalar code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_VECTOR = 64  # elements that torch's widest vectors take in one turn: two of 32 bfloat16 values
_PIECE = 32768  # of at::internal::GRAIN_SIZE: what is smaller is one piece
_EXACT = frozenset(
    (
        *("abs", "add", "ceil", "clamp", "clamp_max", "clamp_min", "clone", "copy", "copysign", "div", "floor", "fmax"),
        *("fmin", "hardtanh", "leaky_relu", "masked_fill", "max", "maximum", "min", "minimum", "mul", "nan_to_num"),
        *("neg", "positive", "reciprocal", "relu", "relu6", "round", "sgn", "sign", "signbit", "sqrt", "square", "sub"),
        *("threshold", "threshold_backward", "true_divide", "trunc", "where", "eq", "ne", "ge", "gt", "le", "lt"),
        *("bitwise_and", "bitwise_not", "bitwise_or", "bitwise_xor", "isfinite", "isinf", "isnan"),
        *("logical_and", "logical_not", "logical_or", "logical_xor"),
    )
)


def follow_place(threads: int, widths: Sequence[int]) -> bool:
    """Tell whether a record's bits may follow its place in a micro-batch, for rows of a multiple of 8 tokens.

    Args:
      threads: what torch computes with on the CPU.
      widths: of the activations.

    With one or two threads every piece ends behind a whole number of vectors if the widths are multiples of 16.
    """
    return threads > 2 or any(width % (2 * _VECTOR // 8) for width in widths)


class RecordByRecord(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While in force, pointwise operations that round by place run for each of `rows` records by itself."""

    def __init__(self, rows: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._rows = rows

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one operation, whole or in parts."""
        named = dict(kwargs or {})
        if self._rows > 1 and _rounds_by_place(func, args, named):
            leading = self._leading(args)
            if leading:
                return _in_parts(func, args, named, self._rows, leading)
        return func(*args, **named)

    def _leading(self, args: tuple[Any, ...]) -> int:
        """Find the operands' first dimension if it holds whole records and the operation is large enough, else 0."""
        shapes = (a.shape for a in args if isinstance(a, Tensor))
        shape = torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]
        if not shape or shape[0] % self._rows:
            return 0
        size = math.prod(shape)
        return 0 if size < _PIECE and size // self._rows % _VECTOR == 0 else shape[0]


def _rounds_by_place(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    name, pointwise = _kind(func)
    if not pointwise:
        return False
    if name == "pow":  # torch multiplies for an exponent of 2, and every RMS norm squares whole activations
        return len(args) < 2 or isinstance(args[1], Tensor) or args[1] != 2
    return name not in _EXACT or kwargs.get("alpha", 1) != 1


@cache
def _kind(func: Any) -> tuple[str, bool]:
    """Name an operation, and say whether it is a pointwise one that makes its own result."""
    fills = any(argument.is_out for argument in func._schema.arguments)
    return func.overloadpacket.__name__.rstrip("_"), torch.Tag.pointwise in func.tags and not fills


def _in_parts(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], rows: int, leading: int) -> Any:
    step = leading // rows
    dimensions = max(a.dim() for a in args if isinstance(a, Tensor))

    def part(value: Any, start: int) -> Any:
        whole = isinstance(value, Tensor) and value.dim() == dimensions and value.shape[0] == leading
        return value[start : start + step] if whole else value

    parts = [func(*(part(a, start) for a in args), **kwargs) for start in range(0, leading, step)]
    if func._schema.is_mutable:
        return args[0]
    return torch.cat(parts)
