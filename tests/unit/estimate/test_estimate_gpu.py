"""The closed form for a GPU against what the engine allocates, counted on models of the real sizes without values.

Not seen here: the CUDA context, workspaces and the allocator's gaps, which are constants that need a GPU.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from appliance.estimate import gpu_memory
from appliance.estimate.activations import attends_plainly
from appliance.estimate.gpu_memory import CONTEXT, HELD, HOST_LIBRARIES, WORKSPACE, host_bytes
from appliance.estimate.memory import footprint
from appliance.estimate.parts import Asked, buffer_rows, micro_batch
from appliance.estimate.shape import Shape, shape_of
from appliance.records import EngineOptions, LoraSpec
from appliance.train import adapting
from appliance.train.adapting import adapt
from appliance.train.encode import Encoded
from appliance.train.engine import Engine
from appliance.train.optimizer import ExactDPOptimizer
from tests.unit.estimate.live import Live, fused_attention
from tests.unit.train.rig import NoNoise, plan


def llama(hidden: int, layers: int, inner: int, vocabulary: int, heads: int, kv: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": "llama", "hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": inner,
        "vocab_size": vocabulary, "num_attention_heads": heads, "num_key_value_heads": kv,
        "max_position_embeddings": 4096, "tie_word_embeddings": False, **more,
    }  # fmt: skip


MODELS = {
    "135m": llama(576, 30, 1536, 49152, 9, 3, tie_word_embeddings=True),
    "1b": llama(2048, 16, 8192, 128256, 32, 8, tie_word_embeddings=True, head_dim=64),
    "equal heads": llama(2048, 4, 5504, 32000, 16, 16),
    "qwen3": llama(1024, 28, 3072, 151936, 16, 8, model_type="qwen3", head_dim=128),
    "8b": llama(4096, 32, 14336, 128256, 32, 8),
    "deepseek": llama(
        1024, 4, 3072, 32000, 16, 16, model_type="deepseek_v3", q_lora_rank=384, kv_lora_rank=128, qk_rope_head_dim=32,
        qk_nope_head_dim=64, v_head_dim=64, first_k_dense_replace=4, n_routed_experts=8, n_group=2, topk_group=1,
        num_experts_per_tok=2, moe_intermediate_size=384,
    ),
}  # fmt: skip


def shape(name: str) -> tuple[Any, Shape]:
    """A model on the device "meta", and its numbers."""
    config = dict(MODELS[name])
    made = AutoConfig.for_model(config.pop("model_type"), **config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(made, dtype=torch.bfloat16)
    linear = {n: (m.out_features, m.in_features) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    return made, shape_of(made.to_dict(), linear, sum(p.numel() for p in model.parameters()), 0)


def wanted(name: str, lora: LoraSpec, max_tokens: int, **options: Any) -> tuple[Any, Asked]:
    config, found = shape(name)
    options = {"device": "cuda", "dtype": "bfloat16", "gradient_bytes": 5 << 30, **options}
    return config, Asked(shape=found, lora=lora, engine=EngineOptions(**options), max_tokens=max_tokens)


def allocated(config: Any, asked: Asked, monkeypatch: pytest.MonkeyPatch) -> int:
    """The most bytes that the engine holds while it computes the largest micro-batch of a run."""
    monkeypatch.setattr(adapting, "_refuse_shared", lambda *_: None)  # it compares addresses, and here are none
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, asked.engine.dtype))
    plain = attends_plainly(asked.shape, asked.element, "cuda")
    live = Live()
    with nullcontext() if plain else fused_attention():  # on "meta" torch takes the plain path by itself
        adapter = adapt(model, asked.lora, 1)
        for tensor in model.parameters():
            live.add(tensor)
        tokens, length = micro_batch(asked.engine.physical_tokens, asked.max_tokens)
        batch = [Encoded(tuple(range(length)), tuple(range(length // 3, length - 1)), length)] * (tokens // length)
        with live:
            engine = Engine(adapter, plan(), asked.engine, 0)
            assert len(engine.buffer.data) == buffer_rows(asked)
            engine.gradients(batch)
    return live.peak


def counted(asked: Asked) -> float:
    """What the closed form says of the same: without context, workspace, gaps and AdamW's moments."""
    found = footprint(asked)
    moments = 8 * asked.parameters
    packed = found.weights + found.adapter - moments + found.gradients
    return packed + (found.activations + found.working) / HELD


FROZEN = LoraSpec(freeze_a=True)
CASES = [
    ("135m", FROZEN, 512, {}),
    ("135m", LoraSpec(r=32, targets="attention"), 512, {}),
    ("135m", FROZEN, 512, {"dtype": "float32"}),
    ("135m", FROZEN, 512, {"physical_tokens": 32768, "gradient_checkpointing": True}),
    ("1b", FROZEN, 512, {"physical_tokens": 8192}),
    ("1b", LoraSpec(), 2048, {"physical_tokens": 8192, "gradient_checkpointing": True}),
    ("1b", LoraSpec(), 512, {"dtype": "float32", "physical_tokens": 4096}),
    ("equal heads", LoraSpec(), 512, {"dtype": "float32", "physical_tokens": 4096}),
    ("qwen3", LoraSpec(), 512, {"physical_tokens": 8192}),
    ("8b", FROZEN, 512, {"physical_tokens": 8192, "gradient_checkpointing": True}),
    ("8b", LoraSpec(), 1024, {"physical_tokens": 4096}),
    ("deepseek", LoraSpec(), 512, {"physical_tokens": 8192}),
    ("deepseek", FROZEN, 512, {"physical_tokens": 4096, "dtype": "float32"}),
]


@pytest.mark.parametrize(("name", "lora", "max_tokens", "options"), CASES)
def test_what_the_engine_allocates_is_counted_to_a_few_percent(
    name: str, lora: LoraSpec, max_tokens: int, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, asked = wanted(name, lora, max_tokens, **options)
    seen, said = allocated(config, asked, monkeypatch), counted(asked)
    assert said == pytest.approx(seen, rel=0.015)


@pytest.mark.parametrize("term", ["layer_bytes", "_backward", "_inputs"])
def test_a_term_that_is_missing_would_be_noticed(term: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config, asked = wanted("8b", FROZEN, 512, physical_tokens=8192, gradient_checkpointing=True)
    seen = allocated(config, asked, monkeypatch)
    monkeypatch.setattr(gpu_memory, term, lambda *_: 0.0)
    assert counted(asked) < 0.98 * seen


def test_adding_noise_takes_what_is_counted_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapting, "_refuse_shared", lambda *_: None)
    config, asked = wanted("135m", LoraSpec(r=128), 64, physical_tokens=64)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    adapter, live = adapt(model, asked.lora, 1), Live()
    with live:
        engine = Engine(adapter, plan(), asked.engine, 0)
        optimizer = ExactDPOptimizer(adapter, engine.sum, NoNoise(), plan(), 1e-3)
        optimizer.apply(optimizer.release())  # AdamW makes its moments
        before = live.peak = live.bytes
        optimizer.apply(optimizer.release())
    taken = (live.peak - before) / asked.parameters
    assert taken == pytest.approx(gpu_memory.RELEASE_VALUE, rel=0.02)
    # It shows where the adapter is large and the batch small, and only there.
    assert footprint(asked).working > gpu_memory.RELEASE_VALUE * asked.parameters / 2
    large = replace(asked, max_tokens=512, engine=asked.engine.model_copy(update={"physical_tokens": 8192}))
    monkeypatch.setattr(gpu_memory, "RELEASE_VALUE", 0)
    without = footprint(large).total
    monkeypatch.undo()
    assert footprint(large).total == without


def test_weights_pass_through_the_hosts_memory_and_a_quantised_base_does_not() -> None:
    _, asked = wanted("8b", FROZEN, 512)
    weights = 2 * asked.shape.parameters
    assert host_bytes(asked) == HOST_LIBRARIES + weights
    quantised = replace(asked, lora=LoraSpec(freeze_a=True, quantize_base="nf4"))
    assert host_bytes(quantised) < HOST_LIBRARIES + weights / 8
    assert footprint(quantised).weights < 0.45 * footprint(asked).weights
    assert footprint(asked).libraries == CONTEXT + WORKSPACE
