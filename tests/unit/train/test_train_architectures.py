"""Every supported shape of model: per-record gradients as plain autograd has them, and no record knows another.

Llama and DeepSeek-V3 stand in `test_train_gradients.py`, under every option; here are the others, and what is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from appliance.errors import ConfigInvalid
from appliance.jobs.job import EngineOptions
from appliance.jobs.lora import LoraSpec
from appliance.train.adapting import adapt
from appliance.train.coupling import is_coupled
from appliance.train.proofs import prove, reference_gradient
from tests.conftest import TINY_VOCABULARY, _save_model
from tests.unit.train.rig import encoded, engine

COMMON = {
    "vocab_size": TINY_VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 4,
}  # fmt: skip
MLA = {
    "moe_intermediate_size": 16, "num_key_value_heads": 4, "n_shared_experts": 1, "n_routed_experts": 4,
    "num_experts_per_tok": 2, "first_k_dense_replace": 1, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8, "v_head_dim": 8,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "qwen2": {"model_type": "qwen2"},  # biases on q, k and v
    "qwen2-tied": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "head_dim": 16},  # norms on q and k, heads wider than hidden / heads
    "mistral": {"model_type": "mistral", "sliding_window": 16},
    "deepseek-v2": {"model_type": "deepseek_v2", "q_lora_rank": 16, "topk_method": "greedy", **MLA},
    "deepseek-v2-lite": {"model_type": "deepseek_v2", "q_lora_rank": None, "topk_method": "greedy", **MLA},
}


@pytest.fixture(params=sorted(SHAPES))
def directory(request: pytest.FixtureRequest, built_once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    from transformers import AutoConfig

    changes = dict(SHAPES[request.param])
    kind = changes.pop("model_type")
    config = AutoConfig.for_model(kind, **(COMMON | changes))
    return built_once(f"tiny-{request.param}", lambda target: _save_model(target, config, seed=23))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_plain_autograd(directory: Path, checkpointing: bool) -> None:
    made = engine(directory, options=EngineOptions(physical_tokens=256, gradient_checkpointing=checkpointing))
    batch = [encoded(n, seed=n) for n in (20, 17, 22, 24)]
    rows = made.gradients(batch).clone()
    for record, row in zip(batch, rows, strict=True):
        plain = reference_gradient(made.adapter, record)
        assert plain.norm() > 0
        assert (row[: len(plain)] - plain).norm() / plain.norm() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_records_do_not_couple(directory: Path, dtype: torch.dtype) -> None:
    made = engine(directory, dtype, random_b=False)
    prove(made)
    assert not is_coupled(made)


@pytest.mark.parametrize("kind", ["gpt2", "router", "tied-targets"])
def test_what_cannot_be_exact_is_refused_with_a_reason(kind: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    if kind == "gpt2":
        config = AutoConfig.for_model("gpt2", n_embd=32, n_layer=1, n_head=2, vocab_size=64)
        reason = "Conv1D"
    elif kind == "router":
        moe = {"num_experts": 4, "moe_intermediate_size": 16, "output_router_logits": True}
        config = AutoConfig.for_model("qwen3_moe", **(COMMON | moe))
        reason = "router"
    else:
        config = AutoConfig.for_model("llama", **COMMON)
        reason = "tied"
    model = AutoModelForCausalLM.from_config(config)
    if kind == "tied-targets":
        model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    with pytest.raises(ConfigInvalid, match=reason):
        adapt(model, LoraSpec(r=4), 7)


@pytest.mark.parametrize("key", ["use_dora", "modules_to_save", "bias", "lora_dropout", "packing"])
def test_what_the_engine_does_not_do_cannot_be_asked_for(key: str) -> None:
    from pydantic import ValidationError

    with pytest.raises(ValidationError, match="Extra inputs"):
        LoraSpec.model_validate({"r": 4, key: True})
