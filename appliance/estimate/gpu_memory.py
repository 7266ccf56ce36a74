"""Peak memory of a training worker on a GPU, in closed form: of the GPU's memory, and of the host's.

What torch's allocator hands out follows from the model; `tests/unit/estimate/test_estimate_gpu.py` counts it operation
by operation on tensors without values. The constants below are fitted to all 21 runs of 17 cases on an H100
(`bench/memory.py --device cuda`, driver 580, torch 2.11).
"""

from __future__ import annotations

from appliance.estimate.activations import attends_plainly, layer_bytes, mlp_bytes, product_width
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
from appliance.estimate.shape import Shape

CONTEXT = 1040 * MIB
"""The CUDA context with the code of the kernels that ran; the driver counts it, torch does not."""
WORKSPACE = 270 * MIB
"""What cuBLAS keeps for its products, and what the allocator keeps between tensors of other sizes."""
HELD = 1.02
"""What is handed out, as a multiple of what is counted."""
RECORDED = 0.69
"""Memory of CUDA graphs, as a multiple of the activations: they compute in memory of their own. Layers whose
experts are routed are allowed as much without graphs: sizes that follow the routing leave gaps (not measured)."""
HOST_LIBRARIES = 3072 * MIB
"""Resident memory of a worker with CUDA builds of its libraries, a context, and no model."""

RELEASE_VALUE, HOST_VALUE = 32, 48
"""Bytes for each parameter of the adapter: on the GPU while noise is added, in float64 and int64; on the host while
noise is drawn and a snapshot is encoded and sealed."""


def footprint(workload: Workload) -> Footprint:
    """Predict the peak on the GPU of one process, for whatever records there may be."""
    tokens, length = micro_batch(workload.engine.physical_tokens, workload.max_tokens)
    kept = _activations(workload, tokens, length)
    working = max(_working(workload, tokens, length), RELEASE_VALUE * workload.parameters - kept)
    return Footprint(
        libraries=CONTEXT + WORKSPACE + gap_bytes(workload),
        weights=weight_bytes(workload),
        adapter=adapter_bytes(workload),
        gradients=gradient_bytes(workload),
        activations=round((HELD + RECORDED * share_apart(workload)) * kept),
        working=round(HELD * working),
    )


def host_bytes(workload: Workload) -> int:
    """Predict the peak of one process in the host's memory.

    The weights pass through it on their way to the GPU, all of them, and are gone before the first step; a base that is
    quantised is read tensor by tensor.
    """
    shape, e = workload.shape, workload.element
    whole = shape.parameters * e
    largest = e * max(shape.vocabulary * shape.hidden, largest_linear(shape))
    loading = whole if workload.lora.quantize_base == "none" else min(whole, largest)
    return HOST_LIBRARIES + max(loading, HOST_VALUE * workload.parameters)


def gap_bytes(workload: Workload) -> int:
    """Count the gap that a piece of logits in 16 bits leaves: its copy in float32 does not fit where it was."""
    narrow = workload.element if workload.element < FLOAT else 0
    return PIECE_ROWS["cuda"] * workload.shape.vocabulary * narrow


def share_apart(workload: Workload) -> float:
    """State the share of the layers that compute in memory of their own, or leave gaps."""
    return 1.0 if workload.engine.cuda_graphs else _routed(workload.shape) / workload.shape.layers


def _routed(shape: Shape) -> int:
    """Count the layers that route for experts."""
    return max(0, shape.layers - shape.experts.dense_layers) if shape.experts is not None else 0


def _layers(workload: Workload, tokens: int, length: int) -> list[float]:
    shape, e = workload.shape, workload.element
    return [tokens * layer_bytes(shape, workload.lora, e, length, index, "cuda") for index in range(shape.layers)]


def _inputs(workload: Workload, tokens: int) -> float:
    """Count the inputs of all layers, which checkpointing keeps."""
    return tokens * workload.shape.layers * workload.shape.hidden * workload.element


def _activations(workload: Workload, tokens: int, length: int) -> float:
    """Count what waits for the backward pass while the head is computed: all layers, or the inputs of all."""
    layers = sum(_layers(workload, tokens, length))
    return min(layers, _inputs(workload, tokens)) if workload.engine.gradient_checkpointing else layers


def _working(workload: Workload, tokens: int, length: int) -> float:
    """Count what comes on top: the most of the head's piece, the last norm, and a layer that is differentiated."""
    d, e = workload.shape.hidden, workload.element
    head = 3 * d * e * tokens + PIECE_ROWS["cuda"] * workload.shape.vocabulary * 2 * FLOAT
    norm = (5 * FLOAT + 2 * e) * d * tokens  # it is differentiated in float32
    return max(head, norm, _backward(workload, tokens, length)) + _dequantised(workload)


def _backward(workload: Workload, tokens: int, length: int) -> float:
    """Count a layer's buffers while it is differentiated; with checkpointing, with what it keeps, computed again."""
    shape, e = workload.shape, workload.element
    # Gradients of the MLP's product and of its two factors; the product itself is free by then.
    buffers = 3.0 * shape.intermediate * e - (0 if shape.experts else product_width(shape, workload.lora, 0) * e)
    if attends_plainly(shape, e, "cuda"):  # gradients of the probabilities and of the scores, when the MLP is done
        pairs = 2 * e * shape.heads * length
        buffers = max(buffers, pairs - mlp_bytes(shape, workload.lora, e, 0))
    if _routed(shape):  # not counted: routing needs values, so as much is allowed as ever
        buffers = max(buffers, (3 * shape.intermediate + 5 * shape.hidden) * e)
    if not workload.engine.gradient_checkpointing:
        return tokens * (buffers + 2 * shape.hidden * e)
    return tokens * (buffers + 3 * shape.hidden * e) + max(_layers(workload, tokens, length))


def _dequantised(workload: Workload) -> float:
    """Count the largest layer's weight, dequantised for one product."""
    return 0 if workload.lora.quantize_base == "none" else largest_linear(workload.shape) * workload.element
