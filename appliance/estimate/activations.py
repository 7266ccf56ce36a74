"""What automatic differentiation keeps of a forward pass, in bytes for each token: the sum over what every layer saves.

Derived from the modules of transformers 5 (eager, no padding mask) and from `train.lora`; a test compares it with the
tensors that are really saved. Notation: d hidden, r rank, e bytes of an element.

* Norms compute in float32 and keep their input in it (4 d) and one number.
* A LoRA layer keeps u (r e) and, unless A is frozen, its input; layers that read one tensor share it.
* Attention by the flash kernel keeps q, k, v, its output and one float32 for each head; the output projection's input
  is that output. Heads of unequal widths (latent attention) take the plain path: q, k, v and all probabilities in
  float32, which grows with the length of a record.
* An MLP keeps gate, silu(gate), up and, for the down projection, their product. Routed experts keep the same for each
  of a token's experts, without the product but with their output.
"""

from __future__ import annotations

from collections.abc import Mapping

from appliance.estimate.shape import Shape
from appliance.jobs.lora import LoraSpec

_FLOAT = 4


def layer_bytes(shape: Shape, lora: LoraSpec, element: int, length: int, index: int) -> float:
    """Bytes that layer `index` keeps for each token of records of padded length `length`."""
    on = _targets(shape, lora, index)
    kept = _attention(shape, lora, element, length, on) + _mlp(shape, lora, element, index, on)
    return kept + lora.r * element * len(on)


def _targets(shape: Shape, lora: LoraSpec, index: int) -> set[str]:
    """Short names of the adapted linear layers of one decoder layer."""
    place = f".layers.{index}."
    return {name.split(place, 1)[1] for name in shape.linear if place in f".{name}" and lora.selects(name)}


def _has(on: set[str], *names: str) -> bool:
    return any(target.endswith(name) for target in on for name in names)


def _attention(shape: Shape, lora: LoraSpec, e: int, length: int, on: set[str]) -> float:
    d, heads = shape.hidden, shape.heads
    kept = _FLOAT * (d + 1.0)
    kept += d * e * (not lora.freeze_a and _has(on, "q_proj", "k_proj", "v_proj", "q_a_proj", "kv_a_proj_with_mqa"))
    latent = shape.latent
    if latent is None:
        if shape.head_norms:
            kept += _FLOAT * (heads + shape.kv_heads) * (shape.head_dim + 1)
        return kept + (2 * heads + 2 * shape.kv_heads) * shape.head_dim * e + _FLOAT * heads
    wide = latent.plain + latent.rotary
    if latent.query_rank:
        kept += _FLOAT * (latent.query_rank + 1) + latent.query_rank * e * (not lora.freeze_a and _has(on, "q_b_proj"))
    # In float32 the norm keeps a view, and with it the whole compressed key-value.
    kept += _FLOAT * (latent.rank + (latent.rotary if e == _FLOAT else 0) + 1)
    kept += latent.rank * e * (not lora.freeze_a and _has(on, "kv_b_proj"))
    kept += _FLOAT * heads * (2 * wide + latent.value + length)
    return kept + heads * latent.value * e * (not lora.freeze_a and _has(on, "o_proj"))


def _mlp(shape: Shape, lora: LoraSpec, e: int, index: int, on: set[str]) -> float:
    kept = _FLOAT * (shape.hidden + 1.0)
    kept += shape.hidden * e * (not lora.freeze_a and _has(on, "gate_proj", "up_proj"))
    down = not lora.freeze_a and _has(on, "down_proj")
    experts = shape.experts
    if experts is None or index < experts.dense_layers:
        return kept + (3 + down) * shape.intermediate * e
    routed = experts.chosen * (3 * experts.width + shape.hidden) * e
    choice = 6 * experts.count + 40 * experts.chosen + 16  # scores, choices and their places
    return kept + routed + choice + (3 + down) * _shared_width(shape.linear, index) * e


def _shared_width(linear: Mapping[str, tuple[int, int]], index: int) -> int:
    place = f".layers.{index}."
    return max((out for name, (out, _) in linear.items() if place in f".{name}" and "up_proj" in name), default=0)
