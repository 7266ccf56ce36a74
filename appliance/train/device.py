"""What differs between a CPU and a GPU in how the engine computes: repeatability and transfers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def make_repeatable(device: torch.device) -> None:
    """Make a GPU give the same bits for the same work, in this process from now on.

    Attention's backward pass adds up in an order that changes from run to run unless it is told not to; cuBLAS needs
    a workspace of fixed size; products in float32 are exact to float32, sums of bfloat16 products are kept in float32.
    """
    if device.type != "cuda":
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)


def send(numbers: Tensor, device: torch.device) -> Tensor:
    """Copy to the device; the host does not wait for it."""
    if device.type == "cuda":
        numbers = numbers.pin_memory()
    return numbers.to(device, non_blocking=True)


@contextmanager
def unpacked() -> Iterator[None]:
    """Keep transformers, within the block, from looking whether a row holds several records: the host would wait."""
    from transformers import masking_utils

    looking = masking_utils.find_packed_sequence_indices
    try:
        masking_utils.find_packed_sequence_indices = lambda position_ids: None
        yield
    finally:
        masking_utils.find_packed_sequence_indices = looking
