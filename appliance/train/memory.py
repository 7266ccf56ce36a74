"""Using less memory: layers that compute again what they would keep, and giving back what is cached."""

from __future__ import annotations

import gc
from typing import Any

import torch


def give_back() -> None:
    """Collect what is no longer used and return cached blocks to the GPU, where cuBLAS and the driver find them."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def checkpoint_layers(model: Any) -> None:
    """Let the layers of a model compute their activations again instead of keeping them."""
    # Layers recompute only in training mode; their children stay in evaluation mode, so nothing is dropped out.
    from transformers.modeling_layers import GradientCheckpointingLayer

    model.activation_checkpointing_enable(
        activation_checkpointing_kwargs={"use_reentrant": False, "preserve_rng_state": False}
    )
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True
