"""Rotary scaling as a GGUF states it, by keys or by a tensor of factors, in the words of transformers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from appliance.errors import DataInvalid

HINT = "import the model's safetensors directory instead"
FACTORS = "rope_freqs.weight"
KEYS = (
    *("rope.scale_linear", "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length"),
    *("rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor", "rope.scaling.yarn_ext_factor"),
    *("rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"),
)
SCALED = ("llama", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma3_text")
"""Models whose rotary embedding follows `rope_parameters` and turns the whole head."""

_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
_CONTEXTS = (8192, 4096, 2048, 16384, 32768)


def scale(config: Any, keys: Mapping[str, Any], where: str, prefix: str) -> None:
    """Write the scaling that the keys state into the configuration.

    Args:
      config: changed in place.
      keys: those of `KEYS` that the file has, without their prefix.
      where: names the file.
      prefix: of the keys, for messages.

    Raises:
      DataInvalid: naming a key that the model cannot follow.
    """
    left = dict(keys)
    kind, factor = left.pop("rope.scaling.type", None), left.pop("rope.scaling.factor", None)
    linear = left.pop("rope.scale_linear", None)
    if linear is not None and kind is None and factor is None:
        kind, factor = "linear", linear
        linear = None
    original = left.pop("rope.scaling.original_context_length", None)
    # llama.cpp takes a factor without a type for a linear one, and a factor of 0 or 1 for none.
    if kind == "none" or (factor in (None, 0, 1) and kind in (None, "linear")):
        made: dict[str, Any] = {}
    elif kind in (None, "linear"):
        made = {"rope_type": "linear", "factor": float(factor)}
    elif kind == "yarn" and factor and original:
        made = _yarn(left, float(factor), int(original))
    else:
        raise _refusal(prefix + ("rope.scaling.type" if kind is not None else "rope.scaling.factor"), where)
    if linear not in (None, 0, 1):
        raise _refusal(prefix + "rope.scale_linear", where)
    for key, value in left.items():  # what only YaRN means something by
        if value not in ((1, 1.0) if key.endswith("attn_factor") else (0, 0.0)):
            raise _refusal(prefix + key, where)
    if made:
        _write(config, made, prefix + "rope.scaling.type", where)


def apply_factors(config: Any, factors: Sequence[float], where: str) -> None:
    """Write the scaling that a tensor of factors states, one for each frequency: none, linear, or that of Llama 3.

    Raises:
      DataInvalid: it is another one.
    """
    highest = max(factors, default=1.0)
    if all(factor == 1 for factor in factors):
        return
    rope = getattr(config, "rope_parameters", None) or {}
    if config.model_type in SCALED and "rope_theta" in rope and rope.get("rope_type") == "default":
        if all(factor == highest for factor in factors):
            return _write(config, {"rope_type": "linear", "factor": highest}, FACTORS, where)
        for original in (*_CONTEXTS, config.max_position_embeddings):
            found = {**_LLAMA3, "rope_type": "llama3", "factor": highest, "original_max_position_embeddings": original}
            if _agree(factors, llama3_factors(float(rope["rope_theta"]), len(factors), found)):
                return _write(config, found, FACTORS, where)
    raise DataInvalid(f"the GGUF's tensor {FACTORS!r} would be lost", hint=HINT, where=where)


def _yarn(left: dict[str, Any], factor: float, original: int) -> dict[str, Any]:
    made = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    for name in ("beta_fast", "beta_slow"):
        value = left.pop(f"rope.scaling.yarn_{name}", None)
        if value is not None:
            made[name] = float(value)
    if left.get("rope.scaling.yarn_ext_factor") in (1, 1.0, -1, -1.0):  # as YaRN has it; -1 is "not stated"
        left.pop("rope.scaling.yarn_ext_factor")
    stated = [left.pop(f"rope.scaling.{name}", None) for name in ("attn_factor", "yarn_attn_factor")]
    for value in stated:
        if value not in (None, 1, 1.0):
            # llama.cpp multiplies YaRN's own correction by it.
            made["attention_factor"] = float(value) * (0.1 * math.log(factor) + 1.0)
    return made


def _write(config: Any, made: dict[str, Any], key: str, where: str) -> None:
    rope = getattr(config, "rope_parameters", None)
    if config.model_type not in SCALED or not isinstance(rope, dict):
        raise _refusal(key, where)
    if "full_attention" in rope:  # sliding layers keep theirs
        config.rope_parameters = {**rope, "full_attention": {**rope["full_attention"], **made}}
    else:
        config.rope_parameters = {**rope, **made}


def llama3_factors(theta: float, count: int, stated: Mapping[str, Any]) -> list[float]:
    """Compute the factors of Llama 3 as llama.cpp's converter writes them."""
    low, high = stated["low_freq_factor"], stated["high_freq_factor"]
    original, factor = stated["original_max_position_embeddings"], stated["factor"]
    found = []
    for place in range(count):
        length = 2 * math.pi * theta ** (place / count)
        smooth = (original / length - low) / (high - low)
        inside = original / high <= length <= original / low
        found.append(
            1 / ((1 - smooth) / factor + smooth) if inside else 1.0 if length < original / high else float(factor)
        )
    return found


def _agree(stated: Sequence[float], computed: Sequence[float]) -> bool:
    return all(math.isclose(a, b, rel_tol=1e-5) for a, b in zip(stated, computed, strict=True))


def _refusal(key: str, where: str) -> DataInvalid:
    return DataInvalid(f"the GGUF's key {key!r} would be lost", hint=HINT, where=where)
