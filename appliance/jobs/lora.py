"""Which layers of a base model are adapted, and how large the adapter is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from appliance.errors import ConfigInvalid
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

    def choose(self, modules: Iterable[str]) -> list[str]:
        """Choose the modules that are adapted from the linear ones of a base model, by dotted name, in their order.

        This is the one rule: whoever plans, estimates or trains asks here. The output head is never adapted.

        Raises:
          ConfigInvalid: a target, or all of them together, match none.
        """
        chosen = [name for name in modules if self.selects(name)]
        for target in () if isinstance(self.targets, str) else self.targets:
            if not any(_is(name, target) for name in chosen):
                hint = "`all-linear` and `attention` fit every supported model"
                raise ConfigInvalid(f"the base model has no linear layer {target}", hint=hint, where="lora.targets")
        if not chosen:
            hint = "attention and MLP have to be linear layers; those of GPT-2 (Conv1D), for example, are not"
            raise ConfigInvalid("the targets match no linear layer of the base model", hint=hint, where="lora.targets")
        return chosen

    def selects(self, module: str) -> bool:
        """Tell whether the linear module of this dotted name is adapted."""
        if module.rsplit(".", 1)[-1] in OUTPUT_HEADS:
            return False
        if self.targets == "all-linear":
            return True
        return any(_is(module, name) for name in (ATTENTION if self.targets == "attention" else self.targets))

    def trainable(self, shapes: Mapping[str, tuple[int, int]]) -> int:
        """Count the adapter's parameters on linear modules of these (out, in) shapes; a frozen A does not count."""
        chosen = [shape for name, shape in shapes.items() if self.selects(name)]
        return sum(self.r * (out + (0 if self.freeze_a else into)) for out, into in chosen)


def _is(module: str, target: str) -> bool:
    return module == target or module.endswith("." + target)
