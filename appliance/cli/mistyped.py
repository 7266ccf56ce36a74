"""What was probably meant by a command line that cannot be read."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from typer._click.exceptions import ClickException  # typer 0.29 carries its own click
from typer.core import TyperGroup

from appliance.cli.lazy import TABLE, load
from appliance.errors import UsageError

_OTHER_WORDS = {
    "run": "start",
    "create": "init",
    "add": "import",
    "delete": "abort",
    "logs": "log",
    "version": "--version",
}
"""What other tools call things."""


def explain(wrong: ClickException, arguments: Sequence[str]) -> UsageError:
    """Say what is wrong with a command line, and name the nearest verbs or options that there are."""
    context: Any = getattr(wrong, "ctx", None)
    path = context.command_path if context is not None else "appliance"
    said = wrong.format_message().rstrip(".")
    message = said[:1].lower() + said[1:]
    if unknown := re.match(r"no such command '([^']*)'", message):
        return UsageError(unknown[0], hint=_verb_hint(path, context, unknown[1], arguments))
    hint = f"`{path} --help` shows its arguments and options"
    if near := getattr(wrong, "possibilities", None):
        return UsageError(message.split(" (Possible")[0], hint=f"did you mean {_listed(near)}? {hint}")
    return UsageError(message, hint=hint)


def _verb_hint(path: str, context: Any, wrong: str, arguments: Sequence[str]) -> str:
    """Look for the words the other way round, among those that could stand there, then everywhere."""
    group = context.command if context is not None else None
    known = group.commands if isinstance(group, TyperGroup) else TABLE
    other = _OTHER_WORDS.get(wrong, "")
    if other in known or other.startswith("--"):
        return f"did you mean `{path} {other}`?"
    pairs = [command.split() for command in _commands()]
    verbs = {wrong, *difflib.get_close_matches(wrong, sorted({verb for _, verb in pairs}), n=2, cutoff=0.75)}
    swapped = [f"appliance {noun} {verb}" for noun, verb in pairs if verb in verbs and noun in arguments]
    here = [f"{path} {word}" for word in difflib.get_close_matches(wrong, known, n=2, cutoff=0.6)]
    elsewhere = [f"appliance {noun} {verb}" for noun, verb in pairs if verb == wrong]
    if meant := swapped or here or elsewhere[:3]:
        return f"did you mean {_listed(meant)}?"
    return f"`{path} --help` lists what there is"


def _commands() -> Iterator[str]:
    """Name every noun with each of its verbs."""
    for noun in TABLE:
        command = load(noun)
        verbs = command.commands if isinstance(command, TyperGroup) else {}
        yield from (f"{noun} {verb}" for verb in verbs)


def _listed(words: Sequence[str]) -> str:
    return " or ".join(f"`{word}`" for word in words)
