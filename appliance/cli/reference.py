"""`python -m appliance.cli.reference` prints docs/cli.md: every verb, option and exit code, read from the code."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import typer
from typer.core import TyperArgument, TyperGroup

import appliance.errors
from appliance.cli.app import app
from appliance.cli.lazy import TABLE, load
from appliance.errors import ApplianceError

HEAD = """\
# The command line

Written by `make docs` from the code; a test compares. `appliance NOUN VERB`; global options stand before or after
the noun and the verb. Results go to stdout, everything else to stderr. With `--json`, stdout holds exactly one document
with `schema` and `version`, on errors too (`appliance.error/1`). SIGTERM and SIGHUP end a command as Ctrl-C does.
Errors are `appliance: error: ...`, then `appliance: hint: ...`; never a traceback, never record text.
"""


def reference() -> str:
    """Write the whole page as Markdown."""
    root = typer.main.get_command(app)
    lines = [HEAD, "## Global options", "", *_options(root), "", "## Exit codes", "", *_exit_codes(), ""]
    for path, command in (found for word in TABLE for found in _commands(load(word), (word,))):
        lines += [f"## appliance {' '.join(path)}", "", command.help or "", "", "```", _usage(path, command), "```", ""]
        lines += [*_options(command), ""]
    return "\n".join(lines).rstrip() + "\n"


def exit_codes() -> dict[int, str]:
    """List every exit status with its meaning, from the tree of errors."""
    kinds = [kind for kind in vars(appliance.errors).values() if isinstance(kind, type)]
    return {0: "ok"} | {
        kind.exit_status: kind.meaning
        for kind in sorted((k for k in kinds if issubclass(k, ApplianceError)), key=lambda kind: kind.exit_status)
    }


def _exit_codes() -> Iterator[str]:
    yield "| code | meaning |"
    yield "|---|---|"
    for code, meaning in exit_codes().items():
        yield f"| {code} | {meaning} |"


def _commands(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(command, TyperGroup):
        for name, inner in command.commands.items():
            yield from _commands(inner, (*path, name))
    else:
        yield path, command


def _usage(path: tuple[str, ...], command: Any) -> str:
    arguments = [_metavar(p) for p in command.params if isinstance(p, TyperArgument)]
    required = [f"{p.opts[0]} ..." for p in command.params if not isinstance(p, TyperArgument) and p.required]
    return " ".join(("appliance", *path, *arguments, *required, "[OPTIONS]"))


def _metavar(parameter: Any) -> str:
    name = (parameter.name or "").rstrip("_").upper() + ("..." if parameter.nargs == -1 else "")
    return name if parameter.required else f"[{name}]"


def _options(command: Any) -> Iterator[str]:
    shown = [p for p in command.params if p.name not in ("help", "install_completion", "show_completion")]
    if not shown:
        return
    yield "| | |"
    yield "|---|---|"
    for parameter in shown:
        text = getattr(parameter, "help", "") or ""
        is_argument = isinstance(parameter, TyperArgument)
        name = _metavar(parameter) if is_argument else "`" + "`, `".join(parameter.opts) + "`"
        yield f"| {name} | {text}{_default(parameter)} |"


def _default(parameter: Any) -> str:
    default = parameter.default
    if isinstance(parameter, TyperArgument) or default in (None, "", False) or callable(default) or parameter.is_eager:
        return ""
    return f" (default {default})"


if __name__ == "__main__":
    sys.stdout.write(reference())
