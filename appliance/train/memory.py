"""Running out of memory: how it shows, and giving back what can be given back before trying with less."""

from __future__ import annotations

import gc

import torch

_WORDS = ("can't allocate memory", "out of memory", "not enough memory")


def ran_out(error: BaseException) -> bool:
    """Whether an exception says that memory ran out. On the CPU torch says it in a plain `RuntimeError`."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _WORDS)


def give_back() -> None:
    """Collects what is no longer used and returns cached blocks to the GPU."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
