"""Running out of memory: how it shows, and giving back what can be given back before trying with less.

Importing this loads no torch: the worker's outermost layer asks `ran_out` too.
"""

from __future__ import annotations

import gc

_WORDS = ("can't allocate memory", "out of memory", "not enough memory", "status_alloc_failed")


def ran_out(error: BaseException) -> bool:
    """Whether an exception says that memory ran out.

    torch has a class for it only where its own allocator on a GPU fails. On the CPU it is a plain `RuntimeError`, and
    so are what the CUDA driver and cuBLAS or cuDNN say when they find no room beside that allocator.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _WORDS)


def give_back() -> None:
    """Collects what is no longer used and returns cached blocks to the GPU, where cuBLAS and the driver find them."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
