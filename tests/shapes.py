"""Models of the sizes that people use, without files: configurations, and the numbers that the estimates take."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from appliance.estimate.shape import Shape, shape_of


def llama(hidden: int, layers: int, inner: int, vocabulary: int, heads: int, kv: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": "llama", "hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": inner,
        "vocab_size": vocabulary, "num_attention_heads": heads, "num_key_value_heads": kv,
        "max_position_embeddings": 4096, "tie_word_embeddings": False, **more,
    }  # fmt: skip


MODELS = {
    "135m": llama(576, 30, 1536, 49152, 9, 3, tie_word_embeddings=True),
    "1b": llama(2048, 16, 8192, 128256, 32, 8, tie_word_embeddings=True, head_dim=64),
    "equal-heads": llama(2048, 4, 5504, 32000, 16, 16),
    "qwen3": llama(1024, 28, 3072, 151936, 16, 8, model_type="qwen3", tie_word_embeddings=True, head_dim=128),
    "qwen2": llama(1536, 28, 8960, 151936, 12, 2, model_type="qwen2", tie_word_embeddings=True),
    "8b": llama(4096, 32, 14336, 128256, 32, 8),
    "deepseek": llama(
        1024, 4, 3072, 32000, 16, 16, model_type="deepseek_v3", q_lora_rank=384, kv_lora_rank=128, qk_rope_head_dim=32,
        qk_nope_head_dim=64, v_head_dim=64, first_k_dense_replace=4, n_routed_experts=8, n_group=2, topk_group=1,
        num_experts_per_tok=2, moe_intermediate_size=384,
    ),
}  # fmt: skip
"""DeepSeek's attention with dense layers alone: routing needs values."""


def on_meta(config: dict[str, Any], dtype: torch.dtype = torch.bfloat16) -> Any:
    """The model of a configuration on torch's device "meta": shapes, no values."""
    made = AutoConfig.for_model(config["model_type"], **{k: v for k, v in config.items() if k != "model_type"})
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(made, dtype=dtype)


def numbers(model: Any) -> Shape:
    """What the estimates take of a model that is neither adapted nor quantised yet."""
    linear = {n: (m.out_features, m.in_features) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    return shape_of(model.config.to_dict(), linear, sum(p.numel() for p in model.parameters()), 0)
