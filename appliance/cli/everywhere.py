"""The global options work after the noun and after the verb too: every command gets them, hidden from its own help."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from typer.core import TyperGroup

_FIELDS = ("json", "quiet", "actor", "reason", "dry_run", "yes")


def spread(command: Any, root: Iterable[Any]) -> Any:
    """Add the options of `root` to a command and all that are under it; what is said last holds."""
    command.params = [*command.params, *(_hidden(option) for option in root if option.name in _NAMES)]
    if isinstance(command, TyperGroup):
        for inner in command.commands.values():
            spread(inner, root)
    return command


def _hidden(option: Any) -> Any:
    copied = copy.copy(option)
    copied.hidden, copied.expose_value, copied.envvar, copied.callback = True, False, None, _override
    return copied


def _override(context: Any, option: Any, value: Any) -> Any:
    if context.obj is not None and context.get_parameter_source(option.name).name == "COMMANDLINE":
        context.obj = replace(context.obj, **_NAMES[option.name](value))
    return value


_NAMES: dict[str, Any] = {
    **{name: (lambda value, name=name: {name: value}) for name in _FIELDS},
    "home_dir": lambda value: {"named_root": Path(value)},
    "no_color": lambda value: {"color": not value},
}
