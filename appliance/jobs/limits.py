"""Public limits of a model, from its configuration alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What families call the number of positions that a model has, or was trained for.
_POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "n_ctx")

_ORIGINAL = "original_max_position_embeddings"


def positions(config: Mapping[str, Any]) -> int | None:
    """Find how many tokens a model reads at most; None where its configuration names no limit.

    >>> positions({"text_config": {"max_position_embeddings": 4096}})
    4096
    """
    text = config.get("text_config")
    inner = text if isinstance(text, Mapping) else config
    rope = inner.get("rope_parameters") or inner.get("rope_scaling") or {}
    if "longrope" in (rope.get("rope_type"), rope.get("type")):
        # Beyond this length another model begins, and a shorter record that follows a longer one would show it.
        inner = {**inner, "n_ctx": rope.get(_ORIGINAL, inner.get(_ORIGINAL))}
    found = [inner[name] for name in _POSITIONS if isinstance(inner.get(name), int) and inner[name] > 0]
    return min(found) if found else None
