"""The numbers of an architecture, from the `config.json` of an imported model. No weights are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Latent:
    """Multi-head latent attention (DeepSeek): ranks of the compressed query and key-value, widths of a head's parts.

    A `query_rank` of 0 means that queries are not compressed.
    """

    query_rank: int
    rank: int
    rotary: int
    plain: int
    value: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """A mixture of experts: how many, how many of them a token is sent to, their width, which layers are dense."""

    count: int
    chosen: int
    width: int
    dense_layers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A decoder.

    Attributes:
      hidden, layers, heads, kv_heads, head_dim, intermediate, vocabulary: as in the configuration.
      head_norms: whether queries and keys are normalised (Qwen3).
      latent: multi-head latent attention, or None for the usual kind.
      experts: a mixture of experts, or None.
      parameters: of the whole model, shared ones counted once.
      stored_bytes: bytes of the weight files.
      linear: (out, in) of every linear layer by its dotted name.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    head_norms: bool
    latent: Latent | None
    experts: Experts | None
    parameters: int
    stored_bytes: int
    linear: Mapping[str, tuple[int, int]]


def shape_of(
    config: Mapping[str, Any], linear: Mapping[str, tuple[int, int]], parameters: int, stored_bytes: int
) -> Shape:
    """Read the shape that a configuration describes; a key that is missing has the default of transformers.

    Raises:
      KeyError: the configuration names no hidden size, layers, heads or vocabulary: it is of another kind of model.
    """
    heads = int(config["num_attention_heads"])
    latent = config.get("kv_lora_rank")
    return Shape(
        hidden=int(config["hidden_size"]),
        layers=int(config["num_hidden_layers"]),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or config["hidden_size"] // heads),
        intermediate=int(config.get("intermediate_size") or 4 * config["hidden_size"]),
        vocabulary=int(config["vocab_size"]),
        head_norms=str(config.get("model_type", "")).startswith("qwen3"),
        latent=_latent(config) if latent else None,
        experts=_experts(config),
        parameters=parameters,
        stored_bytes=stored_bytes,
        linear=linear,
    )


def _latent(config: Mapping[str, Any]) -> Latent:
    return Latent(
        query_rank=int(config.get("q_lora_rank") or 0),
        rank=int(config["kv_lora_rank"]),
        rotary=int(config.get("qk_rope_head_dim") or 64),
        plain=int(config.get("qk_nope_head_dim") or 128),
        value=int(config.get("v_head_dim") or 128),
    )


def _experts(config: Mapping[str, Any]) -> Experts | None:
    names = ("n_routed_experts", "num_experts", "num_local_experts")
    count = next((config[name] for name in names if config.get(name)), 0)
    if not count:
        return None
    return Experts(
        count=int(count),
        chosen=int(config.get("num_experts_per_tok") or 1),
        width=int(config.get("moe_intermediate_size") or config.get("intermediate_size") or 0),
        dense_layers=int(config.get("first_k_dense_replace") or 0),
    )
