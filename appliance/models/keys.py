"""Keys of a configuration that say how a model computes, and that its implementation does not know.

transformers keeps a key that it does not know and goes on without it: the model that is trained is not the one that was
published. Most such keys are notes of the tools that wrote them, so only those are refused that name an effect.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from typing import Any

from appliance.errors import DataInvalid

_EFFECTS = re.compile(
    r"softcap|logits?_scal|_multiplier$|(^|_)sliding_window$|partial_rotary|rotary_(pct|dim|emb_fraction)"
    r"|(^|_)alibi$|parallel_(attn|residual)|query_pre_attn_scalar|(attn|attention)_scale|^scale_(emb|depth)|clip_qkv"
)
_NONE: tuple[Any, ...] = (None, 0, 1, "", [], {})
"""Values that say that there is no such effect, but for True."""


def check_keys(stated: dict[str, Any], model: Any) -> None:
    """Refuse a key that names an effect and that no source of the model mentions, and rotations stated twice.

    Args:
      stated: the configuration as it was published.
      model: as transformers builds it; it may be without memory.

    Raises:
      DataInvalid: naming the first.
    """
    for part in _objects(stated):
        _check_rotation(part)
    source = "".join(sorted(_sources(model)))
    for key, value in _pairs(stated):
        unused = key == "sliding_window" and stated.get("use_sliding_window") is False
        stands = value is True or value not in _NONE
        if _EFFECTS.search(key) and stands and not unused and key not in source:
            raise DataInvalid(
                f"the configuration has {key!r}, and {type(model).__name__} computes without it",
                hint="delete it from a copy of the directory, if it means nothing; else the model is of another kind",
                where="config.json",
            )


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            yield item
            pending.extend(item.values())


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    return (pair for item in _objects(value) for pair in item.items())


def _check_rotation(part: dict[str, Any]) -> None:
    """Refuse a rotation that the keys of today and the older ones state differently: libraries take either."""
    found = part.get("rope_parameters")
    if not isinstance(found, dict):
        return
    kinds = [kind for kind in found.values() if isinstance(kind, dict)] or [found]
    theta, scaling = part.get("rope_theta"), part.get("rope_scaling")
    thetas = [kind["rope_theta"] for kind in kinds if "rope_theta" in kind]
    older = "rope_theta" if theta is not None and thetas and theta not in thetas else ""
    if isinstance(scaling, dict) and scaling and _scaling(scaling) not in map(_scaling, kinds):
        older = "rope_scaling"
    if older:
        raise DataInvalid(
            f"the configuration states the rotation twice, and {older!r} is not what 'rope_parameters' say",
            hint="delete the one that is not meant from a copy of the directory",
            where="config.json",
        )


def _scaling(stated: dict[str, Any]) -> dict[str, Any]:
    return {"rope_type" if key == "type" else key: value for key, value in stated.items() if key != "rope_theta"}


def _sources(model: Any) -> set[str]:
    """Collect the text of the modules that the model's parts and configuration are defined in."""
    kinds = {type(part) for part in (*model.modules(), model.config)}
    kinds |= {type(part.config) for part in model.modules() if hasattr(part, "config")}
    modules = {kind.__module__ for kind in kinds if kind.__module__.startswith("transformers.models.")}
    return {inspect.getsource(sys.modules[name]) for name in modules}
