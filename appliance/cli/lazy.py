"""The words of the command line in one table: a noun's module, and all that it needs, is imported when it is used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command, get_group_from_info
from typer.models import TyperInfo

from appliance.cli.everywhere import spread

TABLE = {
    "init": ("home", "Create a home: keys, database, signing keys, active policy."),
    "status": ("home", "Say in what state the appliance is: seal, ledger, anchor, budgets, runs, disk."),
    "doctor": ("home", "Check this machine: plants leakers in a sandboxed process and shows each one caught."),
    "demo": ("demonstration", "Run the whole job on a real model and real, public reviews by patients."),
    "policy": ("policy", "What the data owner allows: check, show, activate."),
    "key": ("key", "Unseal and seal the store, change keys: unlock, lock, status, rotate."),
    "data": ("data", "Private data: ingest, list, show, retire, verify."),
    "model": ("model", "Models: import, list, verify, chat, merge, quantize."),
    "train": ("train", "Private training: plan, start, status, watch, resume, abort, join."),
    "node": ("node", "Compute nodes of a run on several machines: init, show."),
    "watermark": ("watermark", "The keyed mark in a released adapter: keygen, embed, detect."),
    "evaluate": ("evaluate", "What a run's model can do: run, compare, attention."),
    "export": ("export", "Bundles that prove themselves offline: bundle, verify."),
    "serve": ("serve", "A finished, marked model behind OpenAI's protocol: start, drill, bench, client."),
    "decide": ("decide", "What serving costs, and how firm a weighted decision is: cost, score."),
    "audit": ("audit", "Empirical checks of the privacy mechanism."),
    "budget": ("budget", "The lifetime privacy budget of every dataset."),
    "report": ("report", "Reports for auditors, from the ledger alone: build, verify."),
    "ledger": (
        "ledger",
        "The tamper-evident log: log, show, prove, verify, head, sign, witness, export, erase, upgrade.",
    ),
}
"""Word, module, and what the word is for. The module has `app`, the verbs of the noun, or the verb itself."""


class Words(TyperGroup):
    """The top of the command line: it lists the table, and imports the one word that is used."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = {word: TyperGroup(name=word, help=text) for word, (_, text) in TABLE.items()}

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Find the command that the first argument names, and import it."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, spread(load(name), self.params) if name in TABLE else command, rest


def load(word: str) -> Any:
    """Import a word of the table as a command, or as a group of them."""
    module = import_module(f"appliance.cli.{TABLE[word][0]}")
    if hasattr(module, "app"):
        info = TyperInfo(module.app, name=word, help=TABLE[word][1], no_args_is_help=True)
        return get_group_from_info(info, pretty_exceptions_short=True, rich_markup_mode=None, suggest_commands=True)
    single = typer.Typer(add_completion=False, rich_markup_mode=None)
    single.command(word)(getattr(module, word))
    return get_command(single)
