"""The only YAML parser: a small, strict subset of YAML 1.2, with a line number for every value.

PyYAML supplies the events; the values are built here, because its own constructors follow YAML 1.1: they take
`1e-5` for text, `no` for false and `1:30` for ninety, keep the last of two equal keys and expand aliases.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from appliance.errors import ConfigInvalid
from appliance.names import is_unruly

MAX_BYTES = 256 * 1024
MAX_DEPTH = 16

Path = tuple[str | int, ...]

_WORDS = {"": None, "~": None, "null": None, "true": True, "false": False}
_INT = re.compile(r"[-+]?[0-9]{1,18}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]{1,40}|[0-9]{1,40}(\.[0-9]{0,40})?)([eE][-+]?[0-9]{1,4})?")
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed file.

    Attributes:
      value: the tree of dicts, lists and scalars.
      lines: line number (from 1) of every value, by its path of keys and positions; the root is `()`.
      where: the file's name, for messages.
    """

    value: Any
    lines: dict[Path, int]
    where: str

    def find_known(self, path: Path) -> Path:
        """Find the longest beginning of `path` that exists in the file."""
        while path not in self.lines:
            path = path[:-1]
        return path

    def place(self, path: Path) -> str:
        """Name `file:line` of the value at `path`, or of the nearest value around it."""
        return f"{self.where}:{self.lines[self.find_known(path)]}"


def load(data: bytes, where: str) -> Document:
    """Parse one YAML document.

    Args:
      data: UTF-8 bytes, at most `MAX_BYTES`.
      where: the file's name, for messages.

    Raises:
      ConfigInvalid: for anything that is not one plain document: other encodings, syntax errors, duplicate or empty
        keys, aliases and anchors, tags, several documents, deep nesting, an over-long file.
    """
    if len(data) > MAX_BYTES:
        raise ConfigInvalid(f"the file is larger than {MAX_BYTES // 1024} KiB", where=where)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigInvalid("the file is not UTF-8", where=f"{where}:{line}") from None
    _require_visible(text, where)
    try:
        return _Builder(text, where).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{where}:{mark.line + 1}" if mark else where
        raise ConfigInvalid(f"not valid YAML: {error.problem or error.context}", where=place) from None
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError):
        # PyYAML lets a few bare errors through, for example from an escape beyond the last code point.
        raise ConfigInvalid("not valid YAML: a character or an escape that YAML does not allow", where=where) from None


def _require_visible(text: str, where: str) -> None:
    """Refuse characters by which a file reads otherwise to a person: U+2028 ends a comment here and in no editor."""
    for number, line in enumerate(text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n"), start=1):
        if is_unruly(line.replace("\t", " ")):
            hint = "as are control characters, changes of direction and ends of lines that few editors show"
            raise ConfigInvalid("a character that is not seen is not accepted", hint=hint, where=f"{where}:{number}")


class _Builder:
    """Builds values from PyYAML's events, and notes the line of each."""

    def __init__(self, text: str, where: str) -> None:
        self._events: Iterator[Any] = iter(yaml.parse(text, Loader=yaml.SafeLoader))
        self._where = where
        self._lines: dict[Path, int] = {}

    def document(self) -> Document:
        next(self._events)  # stream start
        first = next(self._events)
        if isinstance(first, yaml.StreamEndEvent):
            raise ConfigInvalid("the file is empty", where=self._where)
        value = self._value(next(self._events), ())
        next(self._events)  # document end
        after = next(self._events)
        if not isinstance(after, yaml.StreamEndEvent):
            raise self._refusal(after, "a second document starts here", "one file holds one document")
        return Document(value, self._lines, self._where)

    def _value(self, event: Any, path: Path) -> Any:
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise self._refusal(event, "aliases and anchors are not accepted", "write the value out")
        if event.tag is not None:
            raise self._refusal(event, "tags are not accepted", "remove the word that starts with '!'")
        if len(path) > MAX_DEPTH:
            raise self._refusal(event, f"nested deeper than {MAX_DEPTH} levels")
        self._lines[path] = event.start_mark.line + 1
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(path)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(path)
        return self._scalar(event)

    def _mapping(self, path: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._key(event)
            if key in found:
                first = self._lines[(*path, key)]
                raise self._refusal(event, f"the key {show(key)} stands twice (first on line {first})", "keep one")
            found[key] = self._value(next(self._events), (*path, key))
            # A key is what a reader looks for: its line, not that of a value that starts below it.
            self._lines[(*path, key)] = event.start_mark.line + 1
        return found

    def _key(self, event: Any) -> str:
        if not isinstance(event, yaml.ScalarEvent) or event.anchor or event.tag or not event.value:
            raise self._refusal(event, "a key must be a plain word")
        return self._text(event)

    def _sequence(self, path: Path) -> list[Any]:
        found: list[Any] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            found.append(self._value(event, (*path, len(found))))
        return found

    def _scalar(self, event: Any) -> Any:
        text = self._text(event)
        return text if event.style else resolve(text)

    def _text(self, event: Any) -> str:
        text: str = event.value
        if _SURROGATE.search(text):
            raise self._refusal(event, "half of a surrogate pair is not a character")
        return text

    def _refusal(self, event: Any, message: str, hint: str = "") -> ConfigInvalid:
        return ConfigInvalid(message, hint=hint, where=f"{self._where}:{event.start_mark.line + 1}")


def resolve(plain: str) -> Any:
    """Resolve an unquoted scalar: null, true, false, an integer, a decimal number, or else the text itself."""
    if plain in _WORDS:
        return _WORDS[plain]
    if _INT.fullmatch(plain):
        return int(plain)
    return float(plain) if _FLOAT.fullmatch(plain) else plain


def show(key: str) -> str:
    """Show a key in a message only if it looks like one, since any file may be handed over by mistake."""
    return f"'{key}'" if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]{0,39}", key) else "(not a word)"


def scalar(value: str | int | float) -> str:
    """Write a scalar so that `load` reads back the same value.

    Raises:
      ValueError: for a string with half of a surrogate pair, or a number that YAML files here do not hold.
    """
    if not isinstance(value, str):
        if isinstance(value, bool):
            return "true" if value else "false"
        text = repr(value)
        if resolve(text) != value:
            raise ValueError("not a number that can be written")
        return text
    if re.fullmatch(r"[A-Za-z][A-Za-z0-9_./-]*", value) and resolve(value) == value:
        return value
    return '"' + "".join(map(_escape, value)) + '"'


def _escape(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if " " <= character <= "~" or (character.isprintable() and not is_unruly(character)):
        return character
    code = ord(character)
    if 0xD800 <= code <= 0xDFFF:
        raise ValueError("half of a surrogate pair")
    return f"\\U{code:08x}"
