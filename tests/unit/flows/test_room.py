"""Two memories of a run on a GPU: both are checked, what fits is chosen, and a refusal names what would."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from appliance.errors import WillNotFit
from appliance.estimate import gpus, nvml
from appliance.estimate.gpu_memory import host_bytes
from appliance.estimate.memory import footprint
from appliance.estimate.parts import Workload, buffer_rows
from appliance.estimate.shape import Shape
from appliance.flows.run import hardware, room
from appliance.flows.run.hardware import GRADIENT_SHARE, engine_options
from appliance.flows.run.room import MARGIN, Need, Room, fit, here, need, require
from appliance.jobs.job import EngineOptions
from appliance.jobs.lora import LoraSpec
from tests.nvml import GIB, H100, SMALL

LAYERS = {
    "self_attn.q_proj": (4096, 4096), "self_attn.k_proj": (1024, 4096), "self_attn.v_proj": (1024, 4096),
    "self_attn.o_proj": (4096, 4096), "mlp.gate_proj": (14336, 4096), "mlp.up_proj": (14336, 4096),
    "mlp.down_proj": (4096, 14336),
}  # fmt: skip
LLAMA_8B = Shape(
    hidden=4096, layers=32, heads=32, kv_heads=8, head_dim=128, intermediate=14336, vocabulary=128256,
    head_norms=False, latent=None, experts=None, parameters=8_030_261_248, stored_bytes=16_060_522_496,
    linear={f"model.layers.{n}.{name}": pair for n in range(32) for name, pair in LAYERS.items()},
)  # fmt: skip


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets the driver say what GPUs there are; None for a machine where nobody can say."""
    monkeypatch.delenv(gpus.VISIBLE, raising=False)
    monkeypatch.setattr(hardware, "available_memory", lambda: 512 * GIB)
    monkeypatch.setattr(room, "available_memory", lambda: 512 * GIB)

    def say(*found: nvml.Gpu, known: bool = True) -> None:
        monkeypatch.setattr(gpus, "_all", lambda: list(found) if known else None)

    return say


def workload(engine: EngineOptions, **lora: Any) -> Workload:
    return Workload(shape=LLAMA_8B, lora=LoraSpec(freeze_a=True, **lora), engine=engine, max_tokens=512)


def options(**more: Any) -> EngineOptions:
    return engine_options("cuda", "auto", **({"physical_tokens": None, "threads": 0} | more))


def test_the_smallest_gpu_that_is_used_counts(driver: Any) -> None:
    driver(H100, SMALL, H100)
    assert here(options()) == Room(host=512 * GIB, gpu=H100.free, name=H100.name)
    assert here(options(nproc=3)) == Room(host=512 * GIB, gpu=SMALL.free, name=SMALL.name)
    for what in (options, here):
        with pytest.raises(WillNotFit, match="4 GPUs are needed, one for each process, and CUDA would show 3 here"):
            what(nproc=4) if what is options else what(EngineOptions(device="cuda", nproc=4))
    driver()
    with pytest.raises(WillNotFit, match="a GPU is needed, and CUDA would show 0 here"):
        options()


def test_what_the_user_says_is_not_asked_of_the_driver(driver: Any) -> None:
    driver()
    told = options(memory=40 * GIB)
    assert here(told, 40 * GIB) == Room(host=512 * GIB, gpu=40 * GIB)
    assert told.gradient_bytes == 40 * GIB // GRADIENT_SHARE


def test_where_nobody_can_say_nothing_is_refused(driver: Any) -> None:
    driver(known=False)
    unknown = here(options())
    assert unknown == Room(host=512 * GIB)
    assert options().gradient_bytes == EngineOptions().gradient_bytes
    require(workload(options(physical_tokens=1 << 16)), unknown)
    assert fit(workload(options()), 8192, unknown).engine.physical_tokens == 8192


def test_the_gradient_buffer_follows_the_whole_memory_and_not_what_is_free(driver: Any) -> None:
    driver(H100)
    first = options()
    assert first.gradient_bytes == H100.total // GRADIENT_SHARE
    assert 100 < buffer_rows(workload(first)) < 256
    driver(replace(H100, free=GIB))
    assert options() == first
    small = replace(SMALL, total=4 * GIB)
    driver(small)
    assert options().gradient_bytes == EngineOptions().gradient_bytes
    assert engine_options("cpu", "float32", physical_tokens=None, threads=0).gradient_bytes == 1 << 28


def test_both_memories_are_needed(driver: Any) -> None:
    driver(H100)
    wanted = workload(options())
    assert need(wanted) == Need(gpu=footprint(wanted).total, host=host_bytes(wanted))
    eight = replace(wanted, engine=wanted.engine.model_copy(update={"nproc": 8}))
    assert need(eight) == Need(gpu=footprint(wanted).total, host=8 * host_bytes(wanted))
    cpu = replace(wanted, engine=EngineOptions(nproc=8))
    assert need(cpu) == Need(gpu=0, host=8 * footprint(cpu).total)


def test_the_physical_batch_follows_the_memory_of_the_gpu(driver: Any) -> None:
    driver(H100)
    wanted = workload(options())
    sizes = {}
    for gib in (80, 48, 24, 20):
        found = fit(wanted, 8192, Room(host=512 * GIB, gpu=gib * GIB)).engine
        sizes[gib] = (found.physical_tokens, found.gradient_checkpointing)
    assert sizes[80] == (8192, False)
    tokens = [sizes[gib][0] for gib in (80, 48, 24)]
    assert tokens == sorted(set(tokens), reverse=True)
    # Recomputing costs half as much time again: only where nothing fits without, here beside the weights alone.
    assert sizes[24][1] is False
    least = footprint(room.change_engine(wanted, physical_tokens=64)).total * MARGIN
    tight = Room(host=512 * GIB, gpu=int(least) - 1)
    assert fit(wanted, 8192, tight).engine.gradient_checkpointing is True
    hopeless = fit(wanted, 8192, Room(host=512 * GIB, gpu=GIB)).engine
    assert (hopeless.physical_tokens, hopeless.gradient_checkpointing) == (64, False)


def hints(wanted: Workload, there: Room) -> tuple[str, str]:
    with pytest.raises(WillNotFit) as refused:
        require(wanted, there)
    assert refused.value.exit_status == 9
    return refused.value.message, refused.value.hint


def test_a_refusal_names_what_would_fit(driver: Any) -> None:
    driver(SMALL)
    wanted = workload(options())
    message, hint = hints(wanted, Room(host=512 * GIB, gpu=24 * GIB))
    assert "MiB of the GPU's memory, 24576 MiB are there" in message
    named = ("physical_tokens: 512", "gradient_checkpointing: true", "quantize_base: nf4 with physical_tokens: 2048")
    assert hint == f"what would fit: {'; or '.join(named)}"
    # The weights alone are too large: what is named fits, and nothing that is not quantised does.
    _, hint = hints(wanted, Room(host=512 * GIB, gpu=12 * GIB))
    assert hint.startswith("what would fit: quantize_base: nf4 with physical_tokens: ")
    assert hints(wanted, Room(host=512 * GIB, gpu=2 * GIB))[1] == "nothing short of a smaller model would fit"


def test_a_refusal_for_the_hosts_memory(driver: Any) -> None:
    driver(H100)
    wanted = workload(options())
    message, hint = hints(wanted, Room(host=8 * GIB, gpu=80 * GIB))
    assert "MiB of the host's memory, 8192 MiB are there" in message
    assert hint == "what would fit: quantize_base: nf4"
    message, hint = hints(room.change_engine(wanted, nproc=8), Room(host=64 * GIB, gpu=80 * GIB))
    assert "of the host's memory" in message
    assert "--nproc 1" in hint
    message, _ = hints(workload(EngineOptions()), Room(host=GIB))
    assert "MiB of memory, 1024 MiB are there" in message
