"""Peak memory of a training worker on a GPU, in closed form: of the GPU's memory, and of the host's.

What torch's allocator hands out follows from the model; `tests/unit/estimate/test_estimate_gpu.py` counts it operation
by operation on tensors without values. The constants below are fitted to ten runs on an H100 (`bench/memory.py --device
cuda`, driver 580, torch 2.11).
"""

from __future__ import annotations

from appliance.estimate.activations import attends_plainly, layer_bytes, product_width
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

CONTEXT = 1040 * MIB
"""The CUDA context with the code of the kernels that ran; the driver counts it, torch does not."""
WORKSPACE = 570 * MIB
"""What cuBLAS keeps for its products, and what the allocator keeps between tensors of other sizes."""
HELD = 1.02
"""What is handed out, as a multiple of what is counted."""
RECORDED = 0.69
"""Memory of CUDA graphs, as a multiple of the activations: they compute in memory of their own. Routed experts, whose
sizes follow the routing, leave about as much between them."""
HOST_LIBRARIES = 3072 * MIB
"""Resident memory of a worker with CUDA builds of its libraries, a context, and no model."""

RELEASE_VALUE, HOST_VALUE = 32, 48
"""Bytes for each parameter of the adapter: on the GPU while noise is added, in float64 and int64; on the host while
noise is drawn and a snapshot is encoded and sealed."""


def footprint(asked: Asked) -> Footprint:
    """The peak on the GPU of one process, for whatever records there may be."""
    tokens, length = micro_batch(asked.engine.physical_tokens, asked.max_tokens)
    kept = _activations(asked, tokens, length)
    working = max(_working(asked, tokens, length), RELEASE_VALUE * asked.parameters - kept)
    return Footprint(
        libraries=CONTEXT + WORKSPACE,
        weights=weight_bytes(asked),
        adapter=adapter_bytes(asked),
        gradients=gradient_bytes(asked),
        activations=round((HELD + RECORDED * (asked.engine.cuda_graphs or asked.shape.experts is not None)) * kept),
        working=round(HELD * working),
    )


def host_bytes(asked: Asked) -> int:
    """The peak of one process in the host's memory.

    The weights pass through it on their way to the GPU, all of them, and are gone before the first step; a base that is
    quantised is read tensor by tensor.
    """
    shape, e = asked.shape, asked.element
    whole = shape.parameters * e
    largest = e * max(shape.vocabulary * shape.hidden, largest_linear(shape))
    loading = whole if asked.lora.quantize_base == "none" else min(whole, largest)
    return HOST_LIBRARIES + max(loading, HOST_VALUE * asked.parameters)


def _layers(asked: Asked, tokens: int, length: int) -> list[float]:
    shape, e = asked.shape, asked.element
    return [tokens * layer_bytes(shape, asked.lora, e, length, index, "cuda") for index in range(shape.layers)]


def _inputs(asked: Asked, tokens: int) -> float:
    """With checkpointing: the inputs of all layers."""
    return tokens * asked.shape.layers * asked.shape.hidden * asked.element


def _activations(asked: Asked, tokens: int, length: int) -> float:
    """What waits for the backward pass while the head is computed: all layers, or the inputs of all."""
    layers = sum(_layers(asked, tokens, length))
    return min(layers, _inputs(asked, tokens)) if asked.engine.gradient_checkpointing else layers


def _working(asked: Asked, tokens: int, length: int) -> float:
    """What comes on top: hidden states and their gradient, and the larger of the head's buffers and a layer's."""
    shape = asked.shape
    hidden = 3 * shape.hidden * asked.element * tokens
    head = PIECE_ROWS["cuda"] * shape.vocabulary * 2 * FLOAT
    return hidden + max(head, _backward(asked, tokens, length)) + _dequantised(asked)


def _backward(asked: Asked, tokens: int, length: int) -> float:
    """A layer's buffers while it is differentiated; with checkpointing, with what it keeps, computed again."""
    shape, e = asked.shape, asked.element
    if shape.experts is not None or attends_plainly(shape, e, "cuda"):
        buffers = 3 * shape.intermediate * e + 4 * shape.hidden * e
        buffers += 3 * e * shape.heads * length * attends_plainly(shape, e, "cuda")
    else:  # gradients of the product and of its two factors; the product itself is free by then
        buffers = (3 * shape.intermediate - product_width(shape, asked.lora, 0)) * e
    again = max(_layers(asked, tokens, length)) if asked.engine.gradient_checkpointing else 0
    return tokens * buffers + again


def _dequantised(asked: Asked) -> float:
    """The largest layer's weight, dequantised for one product."""
    return 0 if asked.lora.quantize_base == "none" else largest_linear(asked.shape) * asked.element
