"""Giving back what can be given back before something is tried with less memory."""

from __future__ import annotations

import gc

import torch


def give_back() -> None:
    """Collect what is no longer used and return cached blocks to the GPU, where cuBLAS and the driver find them."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
