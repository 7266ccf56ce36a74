"""Every event there is, by its type: an event is added by writing its class in the module of its noun."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Annotated, Any, get_args, get_origin

import appliance.events
from appliance.events.event import Event, Facts, LeafInvalid, Told


@cache
def catalog() -> dict[str, type[Event]]:
    """Collect every event, in the order of the modules' names and of the classes in them."""
    names = [f"appliance.events.{module.name}" for module in pkgutil.iter_modules(appliance.events.__path__)]
    return {event.type: event for name in names if name != __name__ for event in _of_module(import_module(name))}


def _of_module(module: ModuleType) -> Iterator[type[Event]]:
    for value in vars(module).values():
        own = isinstance(value, type) and issubclass(value, Event) and value.__module__ == module.__name__
        if own and "type" in vars(value):
            yield value


def event(type_: str, facts: Mapping[str, Any]) -> Event:
    """Build an event from its type and facts. Raises `LeafInvalid`."""
    kind = catalog().get(type_)
    if kind is None:
        raise LeafInvalid(f"there is no event {type_}")
    return kind.of(facts)


def types(told: Told = Told.INSIDE, *, charges: bool = False) -> tuple[str, ...]:
    """List the types that are told in all of these places and, if asked, close work that is charged."""
    kinds = catalog().values()
    return tuple(kind.type for kind in kinds if told in kind.told and (kind.charges or not charges))


def resolves(type_: str, pointer: str) -> bool:
    """Tell whether an entry of this type can state something at an RFC 6901 pointer; `*` is any letters."""
    found: list[Any] = [catalog()[type_]]
    for step in pointer.split("/")[1:]:
        found = [inner for kind in found for inner in _inside(kind, step.replace("~1", "/").replace("~0", "~"))]
    return bool(found)


def _inside(kind: Any, step: str) -> Iterator[Any]:
    """List the types of what can stand under a name, or at a place, in a value of this type."""
    kind = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    origin = get_origin(kind)
    if isinstance(kind, type) and issubclass(kind, Facts):
        for name, field in kind.model_fields.items():
            if fnmatchcase(field.serialization_alias or name, step):
                yield field.annotation
    elif origin is dict:
        yield get_args(kind)[1]
    elif origin is list and (step == "*" or step.isdecimal()):
        yield get_args(kind)[0]
    elif origin is tuple and step == "*":
        yield from get_args(kind)
    elif origin is tuple and step.isdecimal() and int(step) < len(get_args(kind)):
        yield get_args(kind)[int(step)]
