"""The closed form against what is really kept: saved tensors, buffer, lengths. The peak itself: `bench/memory.py`."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch

from appliance.estimate import parts
from appliance.estimate.activations import layer_bytes
from appliance.estimate.memory import footprint
from appliance.estimate.pace import operations, run_seconds
from appliance.estimate.parts import Workload, micro_batch
from appliance.estimate.shape import Shape, shape_of
from appliance.flows.launch import KERNEL_CACHES
from appliance.flows.run.hardware import has_fast_bfloat16
from appliance.flows.run.room import MARGIN, Room, fit
from appliance.jobs.job import EngineOptions
from appliance.jobs.lora import LoraSpec
from appliance.train import engine, lora, loss
from appliance.train.adapting import adapt
from appliance.train.encode import Encoded, buckets
from appliance.train.engine import Engine
from tests.unit.train.rig import load, plan

RECORDS, LENGTH = 2, 64


def read(directory: Path, model: Any) -> Shape:
    linear = {n: (m.out_features, m.in_features) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    config = orjson.loads((directory / "config.json").read_bytes())
    return shape_of(config, linear, sum(p.numel() for p in model.parameters()), 0)


def saved(model: Any, spec: LoraSpec, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes of all tensors that two records keep for their backward pass, the model's own left out; their length."""
    adapter = adapt(model, spec, 7)
    options = EngineOptions(physical_tokens=1024, dtype=str(dtype).removeprefix("torch."))
    made = Engine(adapter, plan(), options, 0)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, tuple[int, torch.Tensor]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        made.gradients([Encoded(tuple(range(5, 69)), tuple(range(20, 63)), LENGTH) for _ in range(RECORDS)])
    return sum(size for size, _ in found.values()), max(LENGTH, made._least)  # tiny bfloat16 products are lengthened


@pytest.fixture(params=["tiny_model_dir", "tiny_deepseek_dir"])
def directory(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "spec",
    [
        LoraSpec(r=4),
        LoraSpec(r=4, freeze_a=True),
        LoraSpec(r=4, targets="attention"),
    ],
)  # fmt: skip
def test_what_layers_keep_is_counted_to_a_few_percent(directory: Path, spec: LoraSpec, dtype: torch.dtype) -> None:
    model = load(directory, dtype)
    shape = read(directory, model)
    element = 4 if dtype == torch.float32 else 2
    kept, length = saved(model, spec, dtype)
    counted = sum(layer_bytes(shape, spec, element, length, n) for n in range(shape.layers)) * RECORDS * length
    counted += 2 * spec.trainable(shape.linear) if element == 2 else 0  # A and B as forward casts them
    # Outside of the layers: the last norm is kept, the first one is not (nothing before it learns); rotary tables.
    assert counted == pytest.approx(kept, rel=0.04)


def test_a_term_that_is_missing_would_be_noticed(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from appliance.estimate import activations

    monkeypatch.setattr(activations, "mlp_bytes", lambda *_: 0.0)
    model = load(tiny_model_dir)
    shape = read(tiny_model_dir, model)
    kept, length = saved(model, LoraSpec(r=4), torch.float32)
    counted = sum(layer_bytes(shape, LoraSpec(r=4), 4, length, n) for n in range(2)) * RECORDS * length
    assert counted < 0.9 * kept


def test_the_constants_are_those_of_the_engine() -> None:
    assert (parts.MAX_ROWS, parts.BLOCK) == (engine._MAX_ROWS, lora.BLOCK)
    for device, rows in parts.PIECE_ROWS.items():
        assert rows == loss.piece_rows(torch.device(device))
    for tokens, longest in ((1024, 512), (256, 512), (4096, 100)):
        filled = [(max(1, min(256, tokens // n)) * n, n) for n in buckets(longest)]
        assert micro_batch(tokens, longest) == max(filled)


def tiny(directory: Path, **engine_options: Any) -> Workload:
    shape = read(directory, load(directory))
    return Workload(shape=shape, lora=LoraSpec(r=4), engine=EngineOptions(**engine_options), max_tokens=512)


def test_less_is_needed_where_less_is_asked(directory: Path) -> None:
    base = tiny(directory, physical_tokens=2048)
    whole = footprint(base)
    assert footprint(replace(base, grouped=True)).gradients == 2 * whole.gradients
    for smaller in (
        tiny(directory, physical_tokens=1024),
        tiny(directory, physical_tokens=2048, dtype="bfloat16"),
        replace(base, lora=LoraSpec(r=4, freeze_a=True)),
        replace(base, lora=LoraSpec(r=4, targets="attention")),
    ):
        assert footprint(smaller).activations < whole.activations
    deep = replace(base, shape=replace(base.shape, layers=20))
    checkpointed = replace(deep, engine=EngineOptions(physical_tokens=2048, gradient_checkpointing=True))
    assert footprint(checkpointed).activations < footprint(deep).activations / 2
    for kind in ("nf4", "int8"):
        quantised = replace(base, lora=LoraSpec(r=4, quantize_base=kind))
        assert footprint(quantised).weights < whole.weights
    assert operations(tiny(directory, gradient_checkpointing=True), 64) > operations(base, 64)
    time = run_seconds(base, 1e6, 100.0, False)
    assert 0 < time.least < time.most


_PRODUCTS = """
import torch
from pathlib import Path

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

left, right = torch.ones(4096, 64, dtype=torch.bfloat16), torch.ones(64, 64, dtype=torch.bfloat16)
for rows in range(16, 416):
    left[:rows] @ right
    before = resident() if rows == 215 else before if rows > 215 else 0
print(resident() - before)
"""


@pytest.mark.skipif(not has_fast_bfloat16(), reason="other kernels, which are not kept")
def test_a_worker_keeps_few_kernels_however_many_lengths_there_are() -> None:
    def grown(**more: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", _PRODUCTS], env={**os.environ, **more}, capture_output=True, check=True
        )
        return int(done.stdout)

    assert grown(**KERNEL_CACHES) < 32 * parts.MIB < 64 * parts.MIB < grown()


def test_a_configuration_of_something_else() -> None:
    with pytest.raises(KeyError):
        shape_of({"model_type": "t5"}, {}, 1, 1)


def test_the_physical_batch_is_the_largest_that_fits(tiny_model_dir: Path) -> None:
    wanted = tiny(tiny_model_dir)
    for tokens in (1024, 512, 256, 64):
        workload = replace(wanted, max_tokens=64, engine=EngineOptions(physical_tokens=tokens))
        there = Room(host=math.ceil(footprint(workload).total * MARGIN))
        assert fit(workload, 1024, there).engine == workload.engine
    assert fit(wanted, 1024, Room(host=1)).engine == EngineOptions(physical_tokens=64)
    assert fit(wanted, 512, Room(host=1 << 40)).engine == EngineOptions(physical_tokens=512)
