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
    Asked,
    Footprint,
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


def footprint(asked: Asked) -> Footprint:
    """Predict the peak of a run where its model is, for whatever records there may be."""
    return gpu_memory.footprint(asked) if asked.engine.device == "cuda" else _on_the_cpu(asked)


def _on_the_cpu(asked: Asked) -> Footprint:
    tokens, length = micro_batch(asked.engine.physical_tokens, asked.max_tokens)
    return Footprint(
        libraries=_libraries(asked),
        weights=weight_bytes(asked),
        adapter=adapter_bytes(asked),
        gradients=gradient_bytes(asked),
        activations=round(ACTIVATIONS_HELD[asked.engine.dtype] * _activations(asked, tokens, length)),
        working=round(WORKING_HELD * _working(asked, tokens, length)),
    )


def _libraries(asked: Asked) -> int:
    kernels = KERNELS if asked.engine.dtype == "bfloat16" else 0
    return LIBRARIES + kernels + (BITSANDBYTES if asked.lora.quantize_base != "none" else 0)


def _activations(asked: Asked, tokens: int, length: int) -> float:
    """All layers at once; with checkpointing two layers', the one computed again and the last, and all inputs."""
    shape = asked.shape
    each = [layer_bytes(shape, asked.lora, asked.element, length, index) * tokens for index in range(shape.layers)]
    if asked.engine.gradient_checkpointing:
        return min(sum(each), 2 * max(each) + shape.layers * shape.hidden * asked.element * tokens)
    return sum(each)


def _working(asked: Asked, tokens: int, length: int) -> float:
    """Count what comes on top: hidden states, their gradient, and the larger of the head's and one layer's buffers."""
    shape, e = asked.shape, asked.element
    hidden = 3 * shape.hidden * e * tokens
    head = PIECE_ROWS["cpu"] * shape.vocabulary * 2 * FLOAT
    return hidden + max(head, _layer(asked, tokens, length)) + _dequantised(asked)


def _layer(asked: Asked, tokens: int, length: int) -> float:
    shape, e = asked.shape, asked.element
    probabilities = 3 * FLOAT * shape.heads * length if shape.latent else 0
    return tokens * (3 * shape.intermediate * e + 4 * shape.hidden * e + probabilities)


def _dequantised(asked: Asked) -> float:
    """Count the largest layer's weight, dequantised for one product."""
    if asked.lora.quantize_base == "none":
        return 0
    return largest_linear(asked.shape) * (asked.element + (FLOAT if asked.lora.quantize_base == "nf4" else 0))
