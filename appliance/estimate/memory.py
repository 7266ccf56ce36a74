"""Peak memory of a training worker where its model is, in closed form: it holds for any records.

On a GPU: `appliance.estimate.gpu_memory`. On the CPU that is resident memory, and the constants here are fitted to runs
that `bench/memory.py` names; `bench/RESULTS.md` compares them with these and others.

The peak is taken where a full micro-batch's activations, the per-record gradients and what backward needs besides lie
in memory together.
"""

from __future__ import annotations

from appliance.estimate import gpu_memory
from appliance.estimate.activations import layer_bytes
from appliance.estimate.parts import (
    FLOAT,
    MIB,
    PIECE_ROWS,
    Footprint,
    Workload,
    adapter_bytes,
    gradient_bytes,
    largest_linear,
    micro_batch,
    weight_bytes,
)

LIBRARIES = 470 * MIB
"""The interpreter with torch 2.13, transformers 5, PEFT 0.21 and Opacus 1.6, CPU builds: fitted, like all below. After
the imports 372 MiB are resident; the rest comes with first use."""
BITSANDBYTES = 28 * MIB
KERNELS = 249 * MIB
"""In bfloat16 the CPU's library keeps compiled kernels, as many as `flows.launch.KERNEL_CACHES` allows."""
ACTIVATIONS_HELD, WORKING_HELD = {"float32": 1.53, "bfloat16": 1.22}, 1.07
"""The allocator keeps much of what was freed between tensors of other sizes; multiples of what is live."""


def footprint(workload: Workload) -> Footprint:
    """Predict the peak of a run where its model is, for whatever records there may be."""
    return gpu_memory.footprint(workload) if workload.engine.device == "cuda" else _on_the_cpu(workload)


def _on_the_cpu(workload: Workload) -> Footprint:
    tokens, length = micro_batch(workload.engine.physical_tokens, workload.max_tokens)
    return Footprint(
        libraries=_libraries(workload),
        weights=weight_bytes(workload),
        adapter=adapter_bytes(workload),
        gradients=gradient_bytes(workload),
        activations=round(ACTIVATIONS_HELD[workload.engine.dtype] * _activations(workload, tokens, length)),
        working=round(WORKING_HELD * _working(workload, tokens, length)),
    )


def _libraries(workload: Workload) -> int:
    kernels = KERNELS if workload.engine.dtype == "bfloat16" else 0
    return LIBRARIES + kernels + (BITSANDBYTES if workload.lora.quantize_base != "none" else 0)


def _activations(workload: Workload, tokens: int, length: int) -> float:
    """Count all layers at once; with checkpointing two, the one computed again and the last, and all inputs."""
    shape = workload.shape
    each = [
        layer_bytes(shape, workload.lora, workload.element, length, index) * tokens for index in range(shape.layers)
    ]
    if workload.engine.gradient_checkpointing:
        return min(sum(each), 2 * max(each) + shape.layers * shape.hidden * workload.element * tokens)
    return sum(each)


def _working(workload: Workload, tokens: int, length: int) -> float:
    """Count what comes on top: hidden states, their gradient, and the larger of the head's and one layer's buffers."""
    shape, e = workload.shape, workload.element
    hidden = 3 * shape.hidden * e * tokens
    head = PIECE_ROWS["cpu"] * shape.vocabulary * 2 * FLOAT
    return hidden + max(head, _layer(workload, tokens, length)) + _dequantised(workload)


def _layer(workload: Workload, tokens: int, length: int) -> float:
    shape, e = workload.shape, workload.element
    probabilities = 3 * FLOAT * shape.heads * length if shape.latent else 0
    return tokens * (3 * shape.intermediate * e + 4 * shape.hidden * e + probabilities)


def _dequantised(workload: Workload) -> float:
    """Count the largest layer's weight, dequantised for one product."""
    if workload.lora.quantize_base == "none":
        return 0
    return largest_linear(workload.shape) * (workload.element + (FLOAT if workload.lora.quantize_base == "nf4" else 0))
