"""Which layers of a base model are adapted, and how large the adapter is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from appliance.values import Count, Positive, Value

OUTPUT_HEADS = ("lm_head", "embed_out", "score")
# Projections of attention by the names Llama, Qwen, Mistral and DeepSeek (MLA) give them.
ATTENTION = (
    *("q_proj", "k_proj", "v_proj", "o_proj"),
    *("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"),
)


class LoraSpec(Value):
    """Which low-rank adapter is trained: delta W = (alpha / r) B A on every target module."""

    r: Count = 8
    alpha: Positive = 16.0
    targets: Literal["all-linear", "attention"] | tuple[str, ...] = "all-linear"
    freeze_a: bool = False
    quantize_base: Literal["none", "nf4", "int8"] = "none"

    def trainable(self, shapes: Mapping[str, tuple[int, int]]) -> int:
        """Size of the adapter on linear modules of these (out, in) shapes; a frozen A does not count."""
        chosen = [shape for name, shape in shapes.items() if self.selects(name)]
        return sum(self.r * (out + (0 if self.freeze_a else into)) for out, into in chosen)

    def selects(self, module: str) -> bool:
        """Whether the linear module of this dotted name is adapted. The output head never is."""
        if module.rsplit(".", 1)[-1] in OUTPUT_HEADS:
            return False
        if self.targets == "all-linear":
            return True
        wanted = ATTENTION if self.targets == "attention" else self.targets
        return any(module == name or module.endswith("." + name) for name in wanted)
