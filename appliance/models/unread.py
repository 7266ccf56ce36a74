"""Weights known by name, dtype and shape alone, so that a model can be examined without reading or mapping its files.

transformers maps a file of weights as a whole, writable and private. A process whose own memory is limited cannot map
what is larger than the limit, although it would never hold it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def weights_unread() -> Iterator[None]:
    """Let transformers take tensors on torch's device "meta" from every file of safetensors, within the block."""
    from transformers import modeling_utils

    patched: Any = modeling_utils
    opened = patched.safe_open
    patched.safe_open = lambda file, **_: _Described(opened(file, framework="pt", device="cpu", backend="pread"))
    try:
        yield
    finally:
        patched.safe_open = opened


class _Described:
    """In place of an open file of safetensors."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __enter__(self) -> _Described:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.__exit__(*(error or (None, None, None)))

    def keys(self) -> list[str]:
        return list(self._file.keys())

    def metadata(self) -> Any:
        return self._file.metadata()

    def get_slice(self, name: str) -> _Shape:
        return _Shape(self._file.get_slice(name))

    def get_tensor(self, name: str) -> torch.Tensor:
        return self.get_slice(name)[...]


class _Shape:
    """In place of a tensor that was not read yet."""

    def __init__(self, unread: Any) -> None:
        self.get_shape, self.get_dtype = unread.get_shape, unread.get_dtype

    def __getitem__(self, at: Any) -> torch.Tensor:
        from transformers.modeling_utils import str_to_torch_dtype

        return torch.empty(self.get_shape(), dtype=str_to_torch_dtype[self.get_dtype()], device="meta")[at]
