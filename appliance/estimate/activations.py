"""What automatic differentiation keeps of a forward pass, in bytes for each token: the sum over what every layer saves.

Derived from the modules of transformers 5 (eager, no padding mask) and from `train.lora`; a test compares it with the
tensors that are really saved. Notation: d hidden, r rank, e bytes of an element.

* Norms compute in float32 and keep their input in it (4 d) and one number.
* A LoRA layer keeps u (r e) and, unless A is frozen, its input; layers that read one tensor share it.
* Attention by a fused kernel keeps q, k, v, its output and one float32 for each head; the output projection's input
  is that output. The plain path keeps all probabilities, which grow with the length of a record. On the CPU it is that
  of heads of unequal widths (latent attention), and computes them in float32. On a GPU it is that of float32 with fewer
  heads of keys than of queries, which the only fused kernel for float32 does not know.
* An MLP keeps gate, silu(gate), up and, for the down projection, their product. Routed experts keep the same for each
  of a token's experts, without the product but with their output.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from appliance.estimate.shape import Shape
from appliance.jobs.lora import LoraSpec

Device = Literal["cpu", "cuda"]

_FLOAT = 4


def layer_bytes(shape: Shape, lora: LoraSpec, element: int, length: int, index: int, device: Device = "cpu") -> float:
    """Count the bytes that layer `index` keeps for each token of records of padded length `length`."""
    on = _targets(shape, lora, index)
    kept = _attention(shape, lora, element, on) + _attended(shape, lora, element, length, on, device)
    return kept + mlp_bytes(shape, lora, element, index) + lora.r * element * len(on)


def attends_plainly(shape: Shape, element: int, device: Device) -> bool:
    """Tell whether attention keeps the probabilities of every pair of tokens."""
    if device == "cpu":
        return shape.latent is not None
    return element == _FLOAT and shape.latent is None and shape.kv_heads != shape.heads


def _targets(shape: Shape, lora: LoraSpec, index: int) -> set[str]:
    """Name the adapted linear layers of one decoder layer, in short."""
    place = f".layers.{index}."
    return {name.split(place, 1)[1] for name in shape.linear if place in f".{name}" and lora.selects(name)}


def _has(on: set[str], *names: str) -> bool:
    return any(target.endswith(name) for target in on for name in names)


def _attention(shape: Shape, lora: LoraSpec, e: int, on: set[str]) -> float:
    """Count what is kept before attention itself: its norms and the inputs of its projections."""
    d = shape.hidden
    kept = _FLOAT * (d + 1.0)
    kept += d * e * (not lora.freeze_a and _has(on, "q_proj", "k_proj", "v_proj", "q_a_proj", "kv_a_proj_with_mqa"))
    latent = shape.latent
    if latent is None:
        return kept + shape.head_norms * _FLOAT * (shape.heads + shape.kv_heads) * (shape.head_dim + 1)
    if latent.query_rank:
        kept += _FLOAT * (latent.query_rank + 1) + latent.query_rank * e * (not lora.freeze_a and _has(on, "q_b_proj"))
    # In float32 the norm keeps a view, and with it the whole compressed key-value.
    kept += _FLOAT * (latent.rank + (latent.rotary if e == _FLOAT else 0) + 1)
    return kept + latent.rank * e * (not lora.freeze_a and _has(on, "kv_b_proj"))


def _attended(shape: Shape, lora: LoraSpec, e: int, length: int, on: set[str], device: Device) -> float:
    """Count what attention itself keeps, and the input of the projection of its output."""
    heads, latent = shape.heads, shape.latent
    projected = e * (not lora.freeze_a and _has(on, "o_proj"))
    if latent is None:
        width = heads * shape.head_dim
        if attends_plainly(shape, e, device):
            return e * (3 * width + heads * length) + projected * width
        return 2 * e * (width + shape.kv_heads * shape.head_dim) + _FLOAT * heads
    wide = latent.plain + latent.rotary
    if attends_plainly(shape, e, device):
        return _FLOAT * heads * (2 * wide + latent.value + length) + projected * heads * latent.value
    # The values are a view of the decompressed key-value, and keep the keys' plain part with them.
    return e * heads * (2 * wide + latent.plain + 2 * latent.value) + _FLOAT * heads


def mlp_bytes(shape: Shape, lora: LoraSpec, e: int, index: int) -> float:
    """Count the bytes that the second half of layer `index`, its norm and its MLP, keeps for each token."""
    on = _targets(shape, lora, index)
    kept = _FLOAT * (shape.hidden + 1.0)
    kept += shape.hidden * e * (not lora.freeze_a and _has(on, "gate_proj", "up_proj"))
    down = not lora.freeze_a and _has(on, "down_proj")
    experts = shape.experts
    if experts is None or index < experts.dense_layers:
        return kept + (3 + down) * shape.intermediate * e
    routed = experts.chosen * (3 * experts.width + shape.hidden) * e
    choice = 6 * experts.count + 40 * experts.chosen + 16  # scores, choices and their places
    return kept + routed + choice + (3 + down) * _shared_width(shape.linear, index) * e


def product_width(shape: Shape, lora: LoraSpec, index: int) -> int:
    """Find the width of gate times up, which layer `index` keeps for its down projection; 0 where it keeps none."""
    kept = not lora.freeze_a and _has(_targets(shape, lora, index), "down_proj")
    return shape.intermediate * kept


def _shared_width(linear: Mapping[str, tuple[int, int]], index: int) -> int:
    place = f".layers.{index}."
    return max((out for name, (out, _) in linear.items() if place in f".{name}" and "up_proj" in name), default=0)
