"""A figure: one value of one ledger entry, which knows where it stands. Nothing else is ever shown as a value."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_UP, Context
from typing import Any, Literal

import orjson
from markupsafe import Markup, escape

from appliance.errors import ApplianceError
from appliance.events.logged import LoggedEvent

_FOUR, _DECIMAL = Context(4, ROUND_UP), re.compile(r"-?[0-9]+\.[0-9]+")
Source = Literal["figure", "leaf", "head"]


@dataclass(frozen=True, slots=True)
class Figure:
    """A value with its place.

    Attributes:
      source: "figure" for a fact, "leaf" for another field of a leaf (its time, its software), "head" for a field of
        the signed tree head.
      entry: index of the entry; -1 for the tree head.
      pointer: RFC 6901 pointer into the facts, into the leaf, or into the tree head.
      value: the JSON value that stands there.
    """

    source: Source
    entry: int
    pointer: str
    value: Any

    def __str__(self) -> str:
        return text(self.value)

    def __html__(self) -> str:
        entry = Markup("") if self.source == "head" else Markup(' data-entry="{}"').format(self.entry)
        look = Markup(' data-look="digest"') if _is_long(self.value) else Markup("")
        title = "tree head" if self.source == "head" else f"entry {self.entry}, {self.place} {self.pointer}"
        exact, shown = str(self), shorten(str(self))
        title += f", exactly {exact}" if shown != exact else ""
        return _element(self.source, look + entry, self.place, self.pointer, title, (exact, shown))

    @property
    def place(self) -> str:
        """`fact`, or `field` of a leaf or a tree head: what the pointer points into."""
        return "fact" if self.source == "figure" else "field"


@dataclass(frozen=True, slots=True)
class Key:
    """The name under which a fact stands in an object, where it is shown as the name of a row."""

    entry: int
    pointer: str

    def __str__(self) -> str:
        return self.pointer.rsplit("/", 1)[-1].replace("~1", "/").replace("~0", "~")

    def __html__(self) -> str:
        entry = Markup(' data-entry="{}"').format(self.entry)
        return _element(
            "key", entry, "fact", self.pointer, f"entry {self.entry}, fact {self.pointer}", (str(self),) * 2
        )


def _element(look: str, entry: Markup, place: str, pointer: str, title: str, texts: tuple[str, str]) -> Markup:
    """Write a `data` element in the one form that the verifier takes (docs/spec/bundle.md)."""
    opening = Markup('<data class="{}"{} data-{}="{}" title="{}" value="{}">')
    exact, shown = texts
    return opening.format(look, entry, place, pointer, title, exact) + escape(shown) + Markup("</data>")


def shorten(exact: str) -> str:
    """Write a decimal number with at most four significant digits, rounded away from zero; other texts stay.

    An epsilon is thus never shown smaller than it is.

    >>> shorten("3.87941"), shorten("0.0000008333333333333333"), shorten("8.0"), shorten("12000"), shorten("2.13.0")
    ('3.880', '0.0000008334', '8.0', '12000', '2.13.0')
    """
    return format(_FOUR.create_decimal(exact), "f") if _DECIMAL.fullmatch(exact) else exact


Sentence = tuple["str | Figure | Key", ...]
"""Words and figures in order. Plain words hold no value."""


def text(value: Any) -> str:
    """Say how a value is shown: text as it is, whole numbers in decimal, everything else as canonical JSON."""
    if isinstance(value, str):
        return value
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_STRICT_INTEGER).decode()


def fact(event: LoggedEvent, pointer: str) -> Figure:
    """Cite the fact of `event` at an RFC 6901 pointer. Raises `ApplianceError` where the entry does not state it."""
    return Figure("figure", event.index, pointer, resolve(event.facts, pointer))


def leaf_field(event: LoggedEvent, pointer: str) -> Figure:
    """Cite a field of the leaf: `/index`, `/type`, `/time`, `/subject`, `/policy_sha256`, `/software/version`."""
    fields = {
        "index": event.index,
        "type": event.type,
        "time": event.time,
        "subject": event.subject,
        "policy_sha256": event.policy_sha256,
        "software": event.software,
    }
    return Figure("leaf", event.index, pointer, resolve(fields, pointer))


def states(event: LoggedEvent, pointer: str) -> bool:
    """Tell whether the entry states a fact at this pointer that is not null."""
    try:
        return resolve(event.facts, pointer) is not None
    except ApplianceError:
        return False


def resolve(value: Any, pointer: str) -> Any:
    """Find the part of a JSON value that an RFC 6901 pointer names. Raises `ApplianceError` where there is none."""
    for token in pointer.split("/")[1:]:
        key = token.replace("~1", "/").replace("~0", "~")
        if isinstance(value, Mapping) and key in value:
            value = value[key]
        elif isinstance(value, Sequence) and not isinstance(value, str) and key.isdecimal() and int(key) < len(value):
            value = value[int(key)]
        else:
            raise ApplianceError(f"an entry of the ledger states nothing at {pointer}")
    return value


def escape_token(name: str) -> str:
    """Write a key as a reference token of an RFC 6901 pointer."""
    return name.replace("~", "~0").replace("/", "~1")


def items(event: LoggedEvent, pointer: str) -> Iterator[tuple[str, Figure]]:
    """List every (key, figure) of an object, or (position, figure) of a list, in order."""
    value = resolve(event.facts, pointer)
    keys = sorted(value) if isinstance(value, Mapping) else [str(position) for position in range(len(value))]
    for key in keys:
        yield key, fact(event, f"{pointer}/{escape_token(key)}")


def _is_long(value: Any) -> bool:
    return isinstance(value, str) and len(value) >= 40 and " " not in value
