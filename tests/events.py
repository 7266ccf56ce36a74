"""Well-typed facts of any event, for tests that care about a few of them."""

from __future__ import annotations

from enum import Enum
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from appliance.events.catalog import catalog
from appliance.events.event import Facts

_TEXTS = ("x", "1.0", "1/2", "0" * 32, "0" * 64)


def facts_of(type_: str, **changes: Any) -> dict[str, Any]:
    """Facts that an event of this type must state, as they stand in a leaf; `changes` replace or add some."""
    return _required(catalog()[type_]) | changes


def _required(kind: type[Facts]) -> dict[str, Any]:
    return {
        field.serialization_alias or name: _sample(Annotated[(field.annotation, *field.metadata, None)])
        for name, field in kind.model_fields.items()
        if field.is_required()
    }


def _sample(kind: Any) -> Any:
    bare = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    origin, inner = get_origin(bare), get_args(bare)
    if origin is Literal:
        return inner[0]
    if origin is list:
        return [_sample(inner[0])]
    if origin is dict:
        return {"x": _sample(inner[1])}
    if origin in (Union, UnionType):
        return _sample(inner[0])
    if issubclass(bare, Facts):
        return _required(bare)
    if issubclass(bare, Enum):
        return next(iter(bare)).value
    return next(value for value in (True, 1, *_TEXTS) if _fits(kind, value))


def _fits(kind: Any, value: Any) -> bool:
    try:
        TypeAdapter(kind).validate_python(value, strict=True)
    except ValidationError:
        return False
    return True
