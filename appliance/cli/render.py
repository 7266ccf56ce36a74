"""All printing. Results go to stdout, everything else to stderr; with --json stdout holds exactly one document.

Whatever is printed may hold text of others: names of files, or of older ledgers. So nothing goes to a terminal but
through `visible`, and in JSON as escapes, from which a program reads the very same text.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TextIO

from appliance import __version__
from appliance.cli.settings import Settings
from appliance.errors import ApplianceError
from appliance.names import visible

_BEYOND_ASCII = re.compile(r"[^\x00-\x7e]+")


def result(settings: Settings, schema: str, document: Mapping[str, Any], lines: Iterable[str]) -> None:
    """Print a command's result: `lines` for people, or one JSON document named `appliance.<schema>/1`."""
    if settings.json:
        _print_document(schema, document)
    else:
        say_lines(lines)
    sys.stdout.flush()


def say_lines(lines: Iterable[str]) -> None:
    """Print lines for people as they come, before a command ends."""
    for line in lines:
        _say(line, sys.stdout)
    sys.stdout.flush()


@contextmanager
def one_document(*, wanted: bool) -> Iterator[None]:
    """Within the block one command runs: its document, or with `wanted` that of its error, is all that is printed."""
    before = _OUTPUT.wanted, _OUTPUT.printed
    _OUTPUT.wanted, _OUTPUT.printed = wanted, False
    try:
        yield
    finally:
        _OUTPUT.wanted, _OUTPUT.printed = before


@dataclass
class _Output:
    wanted: bool = False
    printed: bool = False


_OUTPUT = _Output()


def _print_document(schema: str, document: Mapping[str, Any]) -> None:
    _OUTPUT.printed = True
    whole = {"schema": f"appliance.{schema}/1", "version": __version__, **document}
    print(_BEYOND_ASCII.sub(_readable, json.dumps(whole, ensure_ascii=False)))


def _say(line: str, where: TextIO) -> None:
    """Print one line. A character that the terminal's encoding lacks is escaped too."""
    shown = visible(line)
    encoding = where.encoding or "utf-8"
    print(shown.encode(encoding, "backslashreplace").decode(encoding), file=where)


def _readable(found: re.Match[str]) -> str:
    """Escape characters of a JSON document that cannot be shown; only its strings have any."""
    return "".join(one if visible(one) == one else json.dumps(one)[1:-1] for one in found[0])


def document_lines(text: str) -> list[str]:
    """Split a document of our own making, such as a signed note, into its lines."""
    return text.rstrip().expandtabs().splitlines()


def note(settings: Settings, text: str) -> None:
    """Say something beside the result, on stderr."""
    if not settings.quiet:
        _say(json.dumps({"note": text}) if settings.json else text, sys.stderr)


def notes(settings: Settings, texts: Iterable[str]) -> None:
    """Say several things beside the result."""
    for text in texts:
        note(settings, text)


def error(failure: ApplianceError, before: str = "") -> None:
    """Print a refusal and its hint; with --json as a document too, unless the command has printed its own."""
    if _OUTPUT.wanted and not _OUTPUT.printed:
        said = {name: getattr(failure, name) for name in ("message", "hint", "where")}
        _print_document("error", {"error": type(failure).__name__, "exit_status": failure.exit_status, **said})
    print(before, end="", file=sys.stderr)
    _say(f"appliance: error: {failure}", sys.stderr)
    if failure.hint:
        _say(f"appliance: hint: {failure.hint}", sys.stderr)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Align columns, readable by people and by `awk`."""
    cells = [[visible(str(cell)) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def fields(pairs: Iterable[tuple[str, object]]) -> list[str]:
    """Write one `name  value` line each, aligned."""
    listed = [(visible(name), str(value)) for name, value in pairs]
    width = max((len(name) for name, _ in listed), default=0)
    return [f"{name.ljust(width)}  {value}" for name, value in listed]


class Bar(Protocol):
    """A running display of public progress."""

    def update(self, done: int, total: int, text: str) -> None:
        """Show `done` of `total` with a short text."""


@dataclass
class _Lines:
    """Progress where there is no terminal: one JSON line on stderr per change."""

    what: str
    last: tuple[int, str] = (-1, "")

    def update(self, done: int, total: int, text: str) -> None:
        if (done, text) != self.last:
            self.last = (done, text)
            print(json.dumps({"progress": self.what, "done": done, "total": total, "text": text}), file=sys.stderr)


class _Silent:
    def update(self, done: int, total: int, text: str) -> None:
        pass


@contextmanager
def progress(settings: Settings, what: str) -> Iterator[Bar]:
    """Show a progress bar on a terminal, JSON lines elsewhere, nothing with --quiet."""
    if settings.quiet:
        yield _Silent()
    elif settings.json or not os.isatty(2):
        yield _Lines(what)
    else:
        yield from _rich_bar(settings, what)


def _rich_bar(settings: Settings, what: str) -> Iterator[Bar]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    text = TextColumn("{task.fields[text]}", markup=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), text)
    console = Console(stderr=True, no_color=not settings.color)
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as display:
        task = display.add_task(what, total=None, text="")

        class Rich:
            def update(self, done: int, total: int, text: str) -> None:
                display.update(task, completed=done, total=total or None, text=visible(text))

        yield Rich()
