"""Parts that the tests of evaluation share: adapters in PEFT's format and synthetic records."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture
def write_adapter(tmp_path: Path) -> Callable[..., Path]:
    """`write_adapter(model_dir, seed=...)`: a random LoRA adapter on all linear layers, saved by stock PEFT."""

    def write(model_dir: Path, seed: int = 1, size: float = 0.05) -> Path:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft 0.21 asks transformers 5 by an old name
            model: Any = get_peft_model(base, LoraConfig(r=4, lora_alpha=16, target_modules="all-linear"))
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * size)
        directory = tmp_path / f"adapter-{seed}"
        model.save_pretrained(directory)
        return directory

    return write
