"""All printing. Results go to stdout, everything else to stderr; with --json stdout holds exactly one document.

Whatever is printed may hold text of others: names of files, or of older ledgers. So nothing goes to a terminal but
through `visible`, and in JSON as escapes, from which a program reads the very same text.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TextIO

from appliance import __version__
from appliance.cli.pace import Pace, words
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


_CHANGE_S, _SILENCE_S = 1.0, 30.0
"""Seconds between two lines of progress: at least, where something changed, and at most, where nothing did."""


@dataclass
class _Lines:
    """Progress where there is no terminal: a JSON line on stderr now and then, with what is left."""

    what: str
    pace: Pace = field(default_factory=Pace)
    printed: tuple[int, int, str] | None = None
    at: float = -math.inf

    def update(self, done: int, total: int, text: str) -> None:
        self.pace.update(done, total)
        since, now = self.pace.elapsed - self.at, (done, total, text)
        if since >= _SILENCE_S or (now != self.printed and (since >= _CHANGE_S or done == total > 0)):
            self._print(now)

    def _print(self, now: tuple[int, int, str]) -> None:
        self.printed, self.at = now, self.pace.elapsed
        said = dict(zip(("done", "total", "text"), now, strict=True))
        left = self.pace.left
        times = {"elapsed_s": round(self.at), "left_s": None if left is None else round(left)}
        print(json.dumps({"progress": self.what, **said, **times}), file=sys.stderr, flush=True)


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
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
    )
    from rich.text import Text

    pace = Pace()

    class Left(ProgressColumn):  # rich's own forgets steps of more than half a minute, and then knows nothing
        def render(self, task: Task) -> Text:
            return Text("" if pace.left is None else f"{words(pace.left)} left")

    text = TextColumn("{task.fields[text]}", markup=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), text)
    console = Console(stderr=True, no_color=not settings.color)
    with Progress(*columns, TimeElapsedColumn(), Left(), console=console) as display:
        task = display.add_task(what, total=None, text="")

        class Rich:
            def update(self, done: int, total: int, text: str) -> None:
                pace.update(done, total)
                display.update(task, completed=done, total=total or None, text=visible(text))

        yield Rich()
