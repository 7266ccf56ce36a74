"""What the global options said, and how a command reaches it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from appliance.errors import UsageError

if TYPE_CHECKING:
    from appliance.flows.home import Home, Operator


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The global options of one invocation."""

    named_root: Path | None = None
    json: bool = False
    quiet: bool = False
    color: bool = True
    actor: str = ""
    reason: str = ""
    dry_run: bool = False
    yes: bool = False

    @property
    def root(self) -> Path:
        """The home's directory. Raises `UsageError` where none is named and the user has no directory of his own."""
        if self.named_root is not None:
            return self.named_root
        try:
            return Path.home() / ".appliance"
        except RuntimeError:
            hint = "name the appliance's home with --home or APPLIANCE_HOME"
            raise UsageError("this user has no home directory", hint=hint) from None

    def confirm(self, question: str) -> None:
        """Ask before what cannot be undone. Raises `UsageError` where nobody can answer and --yes is not given."""
        if self.yes:
            return
        if not sys.stdin or not sys.stdin.isatty():
            raise UsageError(f"{question} There is nobody to answer", hint="give --yes if it is meant")
        typer.confirm(question, abort=True, err=True)

    def home(self) -> Home:
        """Open the home that --home or APPLIANCE_HOME names."""
        from appliance.flows.home import Home

        return Home.open(self.root)

    def run(self, named: str) -> str:
        """Find the id of a run that is named by its id or, where that is unique, by its name."""
        from appliance.flows.catalog import identify_run

        with self.home().rows() as rows:
            return identify_run(rows, named)

    def operator(self) -> Operator:
        """Say on whose behalf this invocation runs."""
        from appliance.flows.home import Operator

        return Operator(name=self.actor, reason=self.reason)


def of(context: typer.Context) -> Settings:
    """Find the settings of the running command."""
    settings = context.obj
    assert isinstance(settings, Settings)  # noqa: S101 - the callback of `app` always sets them
    return settings


def writing(context: typer.Context) -> Settings:
    """Find the settings of a verb that always writes. Raises `UsageError` under --dry-run, which it cannot honour."""
    if of(context).dry_run:
        raise UsageError("this verb has no dry run", hint="leave --dry-run out; nothing was done")
    return of(context)
