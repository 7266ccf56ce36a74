"""`docs/spec/events.md` and the glossary's list of events, written from the catalogue: `python -m` this module."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from enum import Enum
from inspect import getdoc
from itertools import groupby
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from appliance.events.catalog import catalog
from appliance.events.event import Event, Facts, Told

HEAD = """\
# Events

Written from `appliance/events/` by `make docs`; a test compares the two.

Every entry of the ledger is one of these events: its `type` and its `facts`, which are public for ever. An entry states
every fact that its event has but those that are *optional*, and no other. No fact is null unless it says *or null*.
What an event is about is the leaf's `subject`. Beside the ledger an event is told in the documents named below it: a
report is read by auditors, a bundle by whoever is given it. A fact is never renamed or removed; it may be older than
its type, so a reader MUST take what an old ledger states.

Types: *decimal text* is a number in decimal digits without an exponent, such as "0.00001"; *fraction* is two whole
numbers, such as "3/25"; *digest* is a SHA-256 or BLAKE3 in 64 hex digits; *time* is RFC 3339 in UTC.
"""
BEGIN, END = "<!-- begin: events -->", "<!-- end: events -->"


def page() -> str:
    """Write the page about every event."""
    parts = [HEAD]
    for noun, events in groupby(sorted(catalog().values(), key=_module), key=_module):
        parts.append(f"## {noun}\n")
        parts += [_event(event) for event in events]
    return "\n".join(parts)


def _module(event: type[Event]) -> str:
    return event.__module__.rsplit(".", 1)[-1]


def _event(event: type[Event]) -> str:
    lines = [f"### `{event.type}`", "", str(getdoc(event)).split("\n\nAttributes")[0], "", *_said(event)]
    rows = list(_rows(event))
    table = (
        ["| fact | type |", "|---|---|", *(f"| {name} | {kind} |" for name, kind in rows)] if rows else ["No facts."]
    )
    return "\n".join([*lines, *table, ""])


def _said(event: type[Event]) -> Iterator[str]:
    said = [f"About `{event.about}`."] if event.about else []
    told = [name for kind, name in ((Told.REPORT, "report"), (Told.BUNDLE, "bundle")) if kind in event.told]
    said += [f"Told in {' and '.join(told)}."] if told else []
    said += [f"The key agent releases the key of its `{event.opens}`."] if event.opens else []
    said += ["It closes work that is charged to its `dataset_id`."] if event.charges else []
    if said:
        yield " ".join(said)
        yield ""


def _rows(kind: type[Facts], above: str = "") -> Iterator[tuple[str, str]]:
    for name, field in kind.model_fields.items():
        place = f"{above}{field.serialization_alias or name}"
        words = field.title or _words(field.annotation)
        yield f"`{place}`", words if field.is_required() else f"{words}, *optional*"
        inner, beside = _inner(field.annotation)
        if inner is not None:
            yield from _rows(inner, f"{place}{beside}.")


def _inner(kind: Any) -> tuple[type[Facts] | None, str]:
    beside = "[]" if get_origin(kind) is list else ""
    bare = get_args(kind)[0] if beside else kind
    return (bare, beside) if isinstance(bare, type) and issubclass(bare, Facts) else (None, "")


def _words(kind: Any) -> str:
    """Describe a type in words."""
    if get_origin(kind) is Annotated:
        bare, *notes = get_args(kind)
        titles = [note.title for note in notes if isinstance(note, FieldInfo) and note.title]
        return titles[0] if titles else _words(bare)
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(f'"{value}"' for value in inner)
    if origin is list:
        return f"list of {_words(inner[0])}"
    if origin is dict:
        return f"object of {_words(inner[1])}"
    if origin is tuple:
        return f"[{', '.join(map(_words, inner))}]"
    if origin in (Union, UnionType):
        return " or ".join("null" if part is type(None) else _words(part) for part in inner)
    if issubclass(kind, Enum):
        return " or ".join(f'"{value.value}"' for value in kind)
    if issubclass(kind, Facts):
        return "object"
    return {str: "text", int: "whole number", bool: "boolean"}[kind]


def listing() -> str:
    """Write the glossary's list: the events by noun."""
    lines = ["| noun | events |", "|---|---|"]
    for noun, events in groupby(sorted(catalog().values(), key=_module), key=_module):
        lines.append(f"| {noun} | {', '.join(f'`{event.type}`' for event in events)} |")
    return "\n".join(lines)


def glossary(text: str) -> str:
    """Put the list into the text of the glossary, between its marks."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{listing()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    docs = Path(sys.argv[1])
    (docs / "spec" / "events.md").write_text(page())
    (docs / "glossary.md").write_text(glossary((docs / "glossary.md").read_text()))
