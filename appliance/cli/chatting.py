"""A chat on a terminal: answers in columns as they are written. Elsewhere: each turn when it is complete."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from appliance.cli import render
from appliance.cli.settings import Settings
from appliance.names import visible

if TYPE_CHECKING:
    from appliance.flows.evaluation.chat import Prompt

FORGET = "/new"
_LONGEST = 1 << 20


class Once:
    """Asks one prompt, and keeps what was answered."""

    def __init__(self, settings: Settings, prompt: str) -> None:
        self._left: list[Prompt] = [prompt, None]
        self._columns = _columns(settings)
        self.answers: dict[str, str] = {}

    def begin(self, names: tuple[str, ...]) -> None:
        """See `flows.evaluation.chat.Asker.begin`."""
        self.answers = dict.fromkeys(names, "")
        self._columns.begin(names)

    def ask(self) -> tuple[Prompt]:
        """See `flows.evaluation.chat.Asker.ask`."""
        return (self._left.pop(0),)

    def show(self, name: str, piece: str) -> None:
        """See `flows.evaluation.chat.Asker.show`."""
        self.answers[name] += piece
        self._columns.show(self.answers)

    def end_turn(self) -> None:
        """See `flows.evaluation.chat.Asker.end_turn`."""
        self._columns.end(self.answers)


class Interactive:
    """Asks what is typed, line by line, until the input ends; `/new` begins a new conversation."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._typed, self._ended = settings, bytearray(), False
        self._columns = _columns(settings)
        self._answers: dict[str, str] = {}
        self._names: tuple[str, ...] = ()

    def begin(self, names: tuple[str, ...]) -> None:
        """See `flows.evaluation.chat.Asker.begin`."""
        self._names = names
        render.note(self._settings, f"ask {', '.join(names)}; {FORGET} begins anew, Ctrl-D ends. Nothing is recorded")
        self._invite()

    def ask(self) -> tuple[Prompt] | None:
        """See `flows.evaluation.chat.Asker.ask`."""
        line = self._line()
        if line is None:
            return (None,) if self._ended else None
        text = line.decode(errors="replace").strip()
        if not text:
            self._invite()
            return None
        if text == FORGET:
            self._answers = {}
            return (True,)
        self._answers = dict.fromkeys(self._names, "")
        self._columns.begin(self._names)
        return (text,)

    def show(self, name: str, piece: str) -> None:
        """See `flows.evaluation.chat.Asker.show`."""
        self._answers[name] += piece
        self._columns.show(self._answers)

    def end_turn(self) -> None:
        """See `flows.evaluation.chat.Asker.end_turn`."""
        if self._answers:
            self._columns.end(self._answers)
        self._invite()

    def _invite(self) -> None:
        if os.isatty(0):
            os.write(2, b"> ")

    def _line(self) -> bytes | None:
        """Take a line of what was typed, if there is one already. It is read here, so that no library keeps it."""
        if b"\n" not in self._typed and not self._ended and select.select([0], [], [], 0)[0]:
            piece = os.read(0, 65536)
            self._ended = not piece or len(self._typed) > _LONGEST
            self._typed += piece
        if b"\n" not in self._typed and not (self._ended and self._typed):
            return None
        line, _, rest = bytes(self._typed).partition(b"\n")
        self._typed[:] = rest
        return line


def take_prompt(given: str) -> str:
    """Take a prompt as it is given; "-" reads the input, which other users cannot list as they can arguments."""
    if given != "-":
        return given
    with os.fdopen(0, closefd=False, errors="replace") as stream:
        return stream.read().strip()


def answer_lines(answers: dict[str, str]) -> Iterable[str]:
    """Write the answers one below the other."""
    for name, text in answers.items():
        yield f"{name}:"
        yield from (f"  {line}" for line in text.splitlines() or [""])


def _columns(settings: Settings) -> _Plain | _Live:
    quiet = settings.quiet or settings.json or not os.isatty(1)
    return _Plain(settings) if quiet else _Live(settings)


class _Plain:
    """Says each turn when it is complete; with --json the command says it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def begin(self, names: tuple[str, ...]) -> None:
        pass

    def show(self, answers: dict[str, str]) -> None:
        pass

    def end(self, answers: dict[str, str]) -> None:
        if not self._settings.json:
            render.say_lines(answer_lines(answers))


class _Live:
    """Columns that grow."""

    def __init__(self, settings: Settings) -> None:
        from rich.console import Console

        self._console = Console(file=sys.stdout, no_color=not settings.color, highlight=False)
        self._live: Any = None

    def begin(self, names: tuple[str, ...]) -> None:
        from rich.live import Live

        self._live = Live(console=self._console, refresh_per_second=10, vertical_overflow="visible")
        self._live.start()
        self.show(dict.fromkeys(names, ""))

    def show(self, answers: dict[str, str]) -> None:
        from rich.table import Table
        from rich.text import Text

        table = Table(expand=True)
        for name in answers:
            table.add_column(name, ratio=1)
        table.add_row(*(Text("\n".join(map(visible, text.splitlines()))) for text in answers.values()))
        self._live.update(table)

    def end(self, answers: dict[str, str]) -> None:
        self.show(answers)
        self._live.stop()
