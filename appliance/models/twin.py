"""A small random model of the same architecture, on which is tried what the large one would have to go through.

Which parts a model has, how they are wired and what it does to its logits follows from its class and configuration,
not from its width or its weights. So a twin of a few narrow layers shows in a second what would otherwise be noticed
when data and keys are at stake. Sizes are found by their names; where that gives no model that runs, there is no twin.
"""

from __future__ import annotations

import copy
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from appliance.errors import DataInvalid
from appliance.models.loading import HERE_ONLY, load_model
from appliance.models.offline import strict
from appliance.models.quantising import quantise

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Precision = Literal["float32", "bfloat16", "nf4", "int8"]
OWN, MEDIUM = 2_000_000, 50_000_000  # parameters up to which a model is tried itself; where no twin runs
WIDTH, HEADS, HEAD, VOCABULARY, EXPERTS, RANK, LAYERS = 64, 4, 16, 288, 4, 16, 12
SIZES: tuple[tuple[str, int], ...] = (
    # the first pattern that a field's whole name matches; a field that is smaller already stays
    (r"(decoder_|encoder_)?vocab_size(_per_layer_input)?|vocabulary_size", VOCABULARY),
    (r"(num_|n_|encoder_|decoder_|num_hidden_|max_window_)?layers?|num_(hidden|decoder|encoder|text)_layers", 2),
    (r"num_key_value_heads|n_head_kv|num_kv_heads|n_kv_heads|num_global_key_value_heads", 2),
    (r".*(num|n)_.*heads?|n_?heads?|(encoder|decoder)_attention_heads", HEADS),
    (r"((global_|attention_|linear_(key|value)_|mamba_)?(head_dim|d_head)|kv_channels|d_kv|head_size)", HEAD),
    (r"qk_rope_head_dim|qk_nope_head_dim|v_head_dim|qk_head_dim|index_head_dim|rotary_dim", 8),
    (r".*(num|n)_.*experts(?!_per).*|num_experts|moe_num_experts", EXPERTS),
    (r".*(experts_per_tok(en)?|top_?k(_experts?)?|moe_k|selected_experts|num_experts_per_tok)", 2),
    (r"n_group|topk_group|num_expert_group", 1),
    (r".*(lora_rank|_rank|dt_rank)", RANK),
    (r".*(hidden_size|hidden_dim|d_model|n_embd|embed_dim|embedding_size|model_dim|embd_pdim|lru_width)", WIDTH),
    (r".*(intermediate|ffn|feed_forward|inner|mlp|ff).*(size|dim|width)|d_ff|d_inner|n_inner|d_mlp", 2 * WIDTH),
    (r".*(state_size|d_state)", HEAD),
    (r"chunk_size|mamba_chunk_size|.*block_size", 16),
)  # fmt: skip


def shrink(config: Any) -> None:
    """Make a configuration, and those that lie in it, describe a small model of the same kind, in place."""
    for inner in [
        value for value in vars(config).values() if hasattr(value, "to_dict") and hasattr(value, "model_type")
    ]:
        shrink(inner)
    _shorten(config)
    alike = getattr(config, "num_key_value_heads", None) == getattr(config, "num_attention_heads", 0)
    expand = getattr(config, "mamba_expand", None) or getattr(config, "expand", None)
    for name, value in list(vars(config).items()):
        size = next((size for pattern, size in SIZES if re.fullmatch(pattern, name)), None)
        if size is not None and type(value) is int and value > size:
            setattr(config, name, size)
        elif name.endswith("_token_id") and type(value) is int and value >= VOCABULARY:
            setattr(config, name, VOCABULARY - 1)
        elif name.endswith(("_token_index", "_token_id")) and type(value) is int:
            setattr(config, name, min(value, VOCABULARY - 1))
        if type(expand) is int and name in ("mamba_d_head", "mamba_head_dim") and type(value) is int:
            setattr(config, name, expand * WIDTH // HEADS)
    if alike:
        config.num_key_value_heads = config.num_attention_heads
    if getattr(config, "qk_rope_head_dim", None) and "head_dim" in vars(config):
        config.head_dim = config.qk_rope_head_dim  # of MLA: the part that is turned


def _shorten(config: Any) -> None:
    """Keep as many layers as show every kind that the configuration lists."""
    lists = [name for name, value in vars(config).items() if isinstance(value, list) and _is_of_layers(config, value)]
    if not lists:
        return
    needed = max(2, *(_prefix_of_all_kinds(getattr(config, name)) for name in lists))
    kept = min(needed, LAYERS)
    for name in lists:
        setattr(config, name, getattr(config, name)[:kept])
    for name in ("num_hidden_layers", "num_layers", "n_layer", "n_layers"):
        if name in vars(config):
            setattr(config, name, kept)


def choose(directory: Path, parameters: int) -> PreTrainedModel | None:
    """Build what an architecture is tried on: the model itself if it is small, else a twin of it that runs.

    Args:
      directory: an imported model.
      parameters: how many it has.

    Returns:
      A model in float32 on the CPU, in evaluation mode; None where the model is large and no twin of it runs.
    """
    if parameters > OWN:
        with suppress(DataInvalid):
            return _build(directory)
        if parameters > MEDIUM:
            return None
    return load_model(directory, torch.float32)


def derive(model: PreTrainedModel, kind: Precision) -> PreTrainedModel:
    """Copy a model in float32 into another precision, or quantise it."""
    if kind == "float32" or kind == "bfloat16":
        return copy.deepcopy(model).to(getattr(torch, kind)).eval()
    with strict("the model cannot be quantised", "config.json"):
        config = copy.deepcopy(model.config)
        state: dict[str, Any] = model.state_dict()
        return quantise(config, state, torch.float32, kind, where="config.json", built=type(model))


def _build(directory: Path) -> PreTrainedModel:
    with strict("no small model of this architecture runs", str(directory)), torch.no_grad():
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(directory, **HERE_ONLY)
        shrink(config)
        model = build_twin(config)
        model(input_ids=torch.arange(8)[None], use_cache=False)
    return model


def build_twin(config: Any, seed: int = 11) -> PreTrainedModel:
    """Build the small random model of a shrunken configuration, in float32 on the CPU, in evaluation mode."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.requires_grad_(False).eval()


def _is_of_layers(config: Any, value: list[Any]) -> bool:
    layers = getattr(config, "num_hidden_layers", None)
    return type(layers) is int and len(value) == layers


def _prefix_of_all_kinds(value: list[Any]) -> int:
    kinds = [str(kind) for kind in value]
    return max(kinds.index(kind) + 1 for kind in set(kinds))
