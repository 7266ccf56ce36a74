"""What every key of a GGUF file means for the model that is made of it: no key is passed over in silence.

transformers reads the keys that it knows and says nothing of the others, so that a file with another rotary scaling
became the same model. Here each key is used (by transformers, whose word is checked, or by this module), is known to
change nothing, or is refused by its name. Meanings: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and the
loader of llama.cpp, which is what such files are written for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from appliance.errors import DataInvalid
from appliance.models.gguf_rope import KEYS as ROPE_KEYS
from appliance.models.gguf_rope import scale

HINT = "import the model's safetensors directory instead"

IRRELEVANT = (
    "GGUF.*",
    "general.*",  # names, authors, licence, how it was quantised; type, architecture and alignment are looked at
    "quantize.imatrix.*",
    "split.*",  # a file that is a part of several is refused before
    "tokenizer.chat_template.*",  # templates besides the one that is used
    "tokenizer.chat_templates",
    "tokenizer.huggingface.json",
    "tokenizer.ggml.token_type_count",
    "tokenizer.ggml.*_token_id",  # of tokens that llama.cpp looks for when it writes; those that count are used
    "tokenizer.ggml.*_token_ids",
    "*.tensor_data_layout",
    "*.rope.scaling.finetuned",
)
"""Patterns of keys that change nothing of what the model computes."""

TOKENIZER = (
    *("model", "pre", "tokens", "scores", "token_type", "merges", "precompiled_charsmap"),
    *("bos_token_id", "eos_token_id", "unknown_token_id", "padding_token_id"),
    *("add_bos_token", "add_eos_token", "add_space_prefix"),
)
"""What the tokenizer is made of; the last three are compared with what it does (`conversion`)."""

ONLY: dict[str, Any] = {
    "general.type": "model",
    "tokenizer.ggml.remove_extra_whitespaces": False,
    "tokenizer.ggml.escape_whitespaces": True,
    "tokenizer.ggml.add_sep_token": False,
}
"""Keys of which only one value is what the converted model does."""

ONLY_OF_ARCHITECTURE: dict[str, Any] = {
    "attention.causal": True,
    "pooling_type": 0,
    "expert_weights_scale": 1.0,
    "expert_group_count": 1,
    "expert_group_used_count": 1,
    "leading_dense_block_count": 0,
    "nextn_predict_layers": 0,
}

SET = {
    "attention.key_length": "head_dim",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "expert_weights_norm": "norm_topk_prob",
    "use_parallel_residual": "use_parallel_residual",
}
"""Keys that transformers drops, by the field of the configuration that means the same, where it has one."""

WINDOWED = ("phi3", "gemma2", "gemma3_text")
"""Models whose `sliding_window` is in force whenever it is set."""

_MODEL_27B = {"gemma2": 46, "gemma3_text": 62}  # layers of the one size that scales by its width


def apply(metadata: Mapping[str, Any], config: Any, where: str) -> None:
    """Make a configuration say all that the keys of a GGUF say.

    Args:
      metadata: of the file.
      config: what transformers made of it, changed in place.
      where: names the file.

    Raises:
      DataInvalid: naming a key that is not known, or that the model cannot follow.
    """
    prefix = f"{metadata.get('general.architecture', '')}."
    _undo_defaults(config, metadata, prefix)
    used = used_by_transformers(metadata)
    left = {key: value for key, value in metadata.items() if key not in used and not _is_irrelevant(key)}
    scaling = {key.removeprefix(prefix): left.pop(key) for key in [*left] if key.removeprefix(prefix) in ROPE_KEYS}
    for key, value in left.items():
        known = value == ONLY[key] if key in ONLY else key.startswith(prefix)
        if not known or (key not in ONLY and not _follow(config, key.removeprefix(prefix), value)):
            raise _refusal(key, where)
    for key, field in used.items():
        if field is not None and not _says(config, field, metadata[key]):
            raise _refusal(key, where)
    scale(config, scaling, where, prefix)


def _is_irrelevant(key: str) -> bool:
    return key not in ONLY and any(fnmatchcase(key, pattern) for pattern in IRRELEVANT)


def used_by_transformers(metadata: Mapping[str, Any]) -> dict[str, str | None]:
    """List the keys that transformers reads, with the field of the configuration that has to have their value."""
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
    from transformers.integrations.gguf.gguf_config_mapping import GGUF_CONFIG_ARCHS

    architecture = str(metadata.get("general.architecture", ""))
    found: dict[str, str | None] = dict.fromkeys(("general.architecture", "general.alignment"))
    found |= {f"tokenizer.ggml.{name}": None for name in TOKENIZER} | {"tokenizer.chat_template": None}
    if architecture in GGUF_CONFIG_ARCHS:
        noted = _Noted(metadata)
        GGUF_CONFIG_ARCHS[architecture](noted, ())
        return {key: None for key in metadata if key in found or key in noted.read}
    names = (architecture, architecture.replace("-", "_"), *_RENAMED.get(architecture, ()))
    mapping: dict[str, str | None] = next(
        (GGUF_CONFIG_MAPPING[name] for name in names if name in GGUF_CONFIG_MAPPING), {}
    )
    found |= {f"{architecture}.{key}": field for key, field in mapping.items() if field is not None}
    return {key: field for key, field in found.items() if key in metadata}


_RENAMED = {"qwen2moe": ("qwen2_moe",), "qwen3moe": ("qwen3_moe",)}


class _Noted(dict[str, Any]):
    """Metadata that notes which keys are asked for."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        super().__init__(metadata)
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return super().get(key, default)


def _undo_defaults(config: Any, metadata: Mapping[str, Any], prefix: str) -> None:
    """Scale Gemma's queries as llama.cpp does: transformers takes those of one checkpoint where a file is silent."""
    if config.model_type in _MODEL_27B:
        heads, length = config.num_attention_heads, metadata.get(f"{prefix}attention.key_length")
        largest = config.num_hidden_layers == _MODEL_27B[config.model_type]
        config.query_pre_attn_scalar = config.hidden_size // heads if largest else length or config.head_dim


def _follow(config: Any, suffix: str, value: Any) -> bool:
    """Make the configuration follow a key that transformers drops; False if it cannot."""
    if suffix in ONLY_OF_ARCHITECTURE:
        return bool(value == ONLY_OF_ARCHITECTURE[suffix])
    if suffix == "attention.value_length":
        return bool(value == _head_dim(config))
    if suffix == "rope.dimension_count":
        rope = getattr(config, "rope_parameters", None) or {}
        part = rope.get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None) or 1.0
        return bool(value == int(_head_dim(config) * part))
    if suffix == "attention.sliding_window":
        return _set(config, "sliding_window", value) if config.model_type in WINDOWED else value == 0
    if suffix == "attention.sliding_window_pattern":
        return bool(value == getattr(config, "_sliding_window_pattern", None))
    if suffix == "rope.freq_base_swa":
        return _says(config, "rope_local_theta", value)
    if suffix == "vocab_size":
        return bool(value == config.vocab_size)
    return suffix in SET and _set(config, SET[suffix], value)


def _set(config: Any, field: str, value: Any) -> bool:
    if not hasattr(config, field) and field != "head_dim":
        return False
    setattr(config, field, value)
    return True


def _head_dim(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _says(config: Any, field: str, value: Any) -> bool:
    """Tell whether the configuration has this value in this field; rotary settings lie in a part of their own."""
    if field == "model_type" or field == "_model_name_or_path":
        return True
    rope = getattr(config, "rope_parameters", None) or {}
    if field == "rope_theta":
        there = rope.get("full_attention", rope).get("rope_theta")
    elif field == "rope_local_theta":
        there = rope.get("sliding_attention", {}).get("rope_theta")
    elif field == "num_key_value_heads" and isinstance(value, tuple):
        there, value = getattr(config, field, None), max(value)
    else:
        there = getattr(config, field, None)
    if isinstance(value, float) and isinstance(there, int | float):
        return math.isclose(value, there, rel_tol=1e-6)
    return bool(there == value)


def _refusal(key: str, where: str) -> DataInvalid:
    return DataInvalid(f"the GGUF's key {key!r} would be lost", hint=HINT, where=where)
