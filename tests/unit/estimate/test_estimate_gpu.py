"""The closed form for a GPU against what the engine allocates, counted on models of the real sizes without values.

Not seen here: the CUDA context, workspaces and the allocator's gaps, which are constants that need a GPU.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch

from appliance.estimate import gpu_memory
from appliance.estimate.activations import attends_plainly
from appliance.estimate.gpu_memory import (
    CONTEXT,
    HELD,
    HOST_LIBRARIES,
    RECORDED,
    WORKSPACE,
    gap_bytes,
    host_bytes,
    share_apart,
)
from appliance.estimate.memory import footprint
from appliance.estimate.pace import START_S, gpu_seconds
from appliance.estimate.parts import Workload, buffer_rows, micro_batch
from appliance.jobs.job import EngineOptions
from appliance.jobs.lora import LoraSpec
from appliance.train import adapting
from appliance.train.adapting import adapt
from appliance.train.encode import Encoded
from appliance.train.engine import Engine
from appliance.train.optimizer import ExactDPOptimizer
from tests.shapes import MODELS, numbers, on_meta
from tests.unit.estimate.live import Live, fused_attention
from tests.unit.train.rig import NoNoise, plan


def wanted(name: str, lora: LoraSpec, max_tokens: int, **options: Any) -> tuple[Any, Workload]:
    """A model on the device "meta", and a run of it."""
    engine = EngineOptions(**{"device": "cuda", "dtype": "bfloat16", "gradient_bytes": 5 << 30, **options})
    model = on_meta(MODELS[name], getattr(torch, engine.dtype))
    return model, Workload(shape=numbers(model), lora=lora, engine=engine, max_tokens=max_tokens)


def allocated(model: Any, workload: Workload, monkeypatch: pytest.MonkeyPatch) -> int:
    """The most bytes that the engine holds while it computes the largest micro-batch of a run."""
    monkeypatch.setattr(adapting, "_refuse_shared", lambda *_: None)  # it compares addresses, and here are none
    plain = attends_plainly(workload.shape, workload.element, "cuda")
    live = Live()
    with nullcontext() if plain else fused_attention():  # on "meta" torch takes the plain path by itself
        adapter = adapt(model, workload.lora, 1)
        for tensor in model.parameters():
            live.add(tensor)
        tokens, length = micro_batch(workload.engine.physical_tokens, workload.max_tokens)
        batch = [Encoded(tuple(range(length)), tuple(range(length // 3, length - 1)), length)] * (tokens // length)
        with live:
            engine = Engine(adapter, plan(), workload.engine, 0)
            assert len(engine.buffer.data) == buffer_rows(workload)
            engine.gradients(batch)
    return live.peak


def counted(workload: Workload) -> float:
    """What the closed form says of the same: without context, workspace, gaps and AdamW's moments."""
    found = footprint(workload)
    moments = 8 * workload.parameters
    packed = found.weights + found.adapter - moments + found.gradients
    held = HELD + RECORDED * share_apart(workload)
    return packed + found.activations / held + found.working / HELD


FROZEN = LoraSpec(freeze_a=True)
CASES = [
    ("135m", FROZEN, 512, {}),
    ("135m", LoraSpec(r=32, targets="attention"), 512, {}),
    ("135m", FROZEN, 512, {"dtype": "float32"}),
    ("135m", FROZEN, 512, {"physical_tokens": 32768, "gradient_checkpointing": True}),
    ("1b", FROZEN, 512, {"physical_tokens": 8192}),
    ("1b", LoraSpec(), 2048, {"physical_tokens": 8192, "gradient_checkpointing": True}),
    ("1b", LoraSpec(), 512, {"dtype": "float32", "physical_tokens": 4096}),
    ("equal-heads", LoraSpec(), 512, {"dtype": "float32", "physical_tokens": 4096}),
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
    model, workload = wanted(name, lora, max_tokens, **options)
    seen, said = allocated(model, workload, monkeypatch), counted(workload)
    assert said == pytest.approx(seen, rel=0.015)


def test_room_is_left_for_graphs_and_for_layers_that_route_and_for_no_other() -> None:
    workload = wanted("deepseek", FROZEN, 512)[1]
    experts = workload.shape.experts
    assert experts is not None
    routing = replace(workload, shape=replace(workload.shape, experts=replace(experts, dense_layers=1)))
    graphs = replace(workload, engine=workload.engine.model_copy(update={"cuda_graphs": True}))
    assert [share_apart(one) for one in (workload, routing, graphs)] == [0.0, 0.75, 1.0]
    # A layer that routes cannot be counted here; it is never allowed less than a dense one.
    assert gpu_memory._backward(routing, 4096, 512) > gpu_memory._backward(workload, 4096, 512)


@pytest.mark.parametrize("term", ["layer_bytes", "_backward", "_inputs"])
def test_a_term_that_is_missing_would_be_noticed(term: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, workload = wanted("8b", FROZEN, 512, physical_tokens=8192, gradient_checkpointing=True)
    seen = allocated(model, workload, monkeypatch)
    monkeypatch.setattr(gpu_memory, term, lambda *_: 0.0)
    assert counted(workload) < 0.98 * seen


def test_adding_noise_takes_what_is_counted_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapting, "_refuse_shared", lambda *_: None)
    model, workload = wanted("135m", LoraSpec(r=128), 64, physical_tokens=64)
    adapter, live = adapt(model, workload.lora, 1), Live()
    with live:
        engine = Engine(adapter, plan(), workload.engine, 0)
        optimizer = ExactDPOptimizer(adapter, engine.sum, NoNoise(), plan(), 1e-3)
        optimizer.apply(optimizer.release())  # AdamW makes its moments
        before = live.peak = live.bytes
        optimizer.apply(optimizer.release())
    taken = (live.peak - before) / workload.parameters
    assert taken == pytest.approx(gpu_memory.RELEASE_VALUE, rel=0.02)
    # It shows where the adapter is large and the batch small, and only there.
    assert footprint(workload).working > gpu_memory.RELEASE_VALUE * workload.parameters / 2
    large = replace(workload, max_tokens=512, engine=workload.engine.model_copy(update={"physical_tokens": 8192}))
    monkeypatch.setattr(gpu_memory, "RELEASE_VALUE", 0)
    without = footprint(large).total
    monkeypatch.undo()
    assert footprint(large).total == without


def test_each_process_has_a_gpu_of_its_own_and_takes_its_share_of_the_time() -> None:
    _, one = wanted("135m", FROZEN, 512)
    four = replace(one, engine=one.engine.model_copy(update={"nproc": 4}))
    assert footprint(four) == footprint(one)
    alone, together = (gpu_seconds(workload, 1e9, 1e5).most - START_S[1] for workload in (one, four))
    assert together == pytest.approx(alone / 4)


def test_weights_pass_through_the_hosts_memory_and_a_quantised_base_does_not() -> None:
    _, workload = wanted("8b", FROZEN, 512)
    weights = 2 * workload.shape.parameters
    assert host_bytes(workload) == HOST_LIBRARIES + weights
    quantised = replace(workload, lora=LoraSpec(freeze_a=True, quantize_base="nf4"))
    assert host_bytes(quantised) < HOST_LIBRARIES + weights / 8
    assert footprint(quantised).weights < 0.45 * footprint(workload).weights
    for found in (workload, quantised):
        assert footprint(found).libraries == CONTEXT + WORKSPACE + gap_bytes(found)
    wide = replace(workload, engine=workload.engine.model_copy(update={"dtype": "float32"}))
    assert footprint(wide).libraries == CONTEXT + WORKSPACE  # logits in float32 have no copy
