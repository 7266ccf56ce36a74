"""Models of published shapes with random weights, made on the device: nothing is read from a disk.

One set of weights serves every model that is made of it: a frozen base is never written to, so both sides of a ratio
stand on the same one and memory holds it once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tests.shapes import MODELS, llama


@dataclass(frozen=True)
class Shape:
    """A configuration, and the micro-batches (rows, length) that are measured on it."""

    config: dict[str, Any]
    batches: tuple[tuple[int, int], ...]


SMALL = ((8, 128), (32, 32), (2, 1024))
LARGE = ((64, 128), (256, 32), (16, 1024))
SHAPES = {
    "tiny": Shape(llama(64, 2, 128, 512, 4, 2, tie_word_embeddings=True), ((4, 64), (8, 16))),
    "135m": Shape(MODELS["135m"], LARGE + SMALL),  # SmolLM2
    "1b": Shape(MODELS["1b"], LARGE + SMALL),  # Llama 3.2
    "8b": Shape(MODELS["8b"], ((16, 128), (4, 1024), (2, 1024))),  # Llama 3.1
}


class Built:
    """A shape on a device: every call makes a new model over the same weights.

    Args:
      name: of the shape.
      device: where the weights are made.
    """

    def __init__(self, name: str, device: str) -> None:
        from transformers import AutoConfig

        self.name, self.device, self.shape = name, device, SHAPES[name]
        config = dict(self.shape.config)
        self.config: Any = AutoConfig.for_model(config.pop("model_type"), **config)
        self._weights: dict[str, dict[str, Tensor]] = {}

    def __call__(self, dtype: str) -> Any:
        """A model in a dtype, frozen, in evaluation mode."""
        model = self._empty(dtype)
        if dtype not in self._weights:
            self._weights[dtype] = {name: self._random(name, weight) for name, weight in model.state_dict().items()}
        model.load_state_dict(self._weights[dtype], assign=True)
        if self.config.tie_word_embeddings:
            model.lm_head.weight = model.model.embed_tokens.weight
        return model.to(self.device).requires_grad_(False).eval()

    @cached_property
    def linear(self) -> list[tuple[int, int]]:
        """(out, in) of every linear layer of the decoder."""
        body = self._empty("bfloat16").model
        found = (module for module in body.modules() if isinstance(module, torch.nn.Linear))
        return [(module.out_features, module.in_features) for module in found]

    def flops(self, rows: int, length: int, supervised: int, rank: int) -> float:
        """Of one step of LoRA: products of the base and of the adapter, attention (causal), logits where supervised.

        The base is multiplied twice for each token (forward, and the gradient of the input), attention and the adapter
        three times.
        """
        tokens = rows * length
        base = sum(2 * 2 * out * into for out, into in self.linear) * tokens
        adapter = sum(3 * 2 * rank * (out + into) for out, into in self.linear) * tokens
        attention = 3 * 2 * length * self.config.hidden_size * self.config.num_hidden_layers * tokens
        head = 2 * 2 * self.config.vocab_size * self.config.hidden_size * supervised
        return float(base + adapter + attention + head)

    def _empty(self, dtype: str) -> Any:
        from accelerate import init_empty_weights
        from transformers import AutoModelForCausalLM

        with init_empty_weights(include_buffers=False):
            return AutoModelForCausalLM.from_config(self.config, dtype=getattr(torch, dtype))

    def _random(self, name: str, like: Tensor) -> Tensor:
        if name == "lm_head.weight" and self.config.tie_word_embeddings:
            return torch.empty(like.shape, dtype=like.dtype, device="meta")
        made = torch.empty(like.shape, dtype=like.dtype, device=self.device)
        return made.fill_(1.0) if like.dim() == 1 else made.normal_(0, 0.02)
