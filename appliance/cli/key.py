"""`appliance key`: unlock, lock, status, rotate."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from appliance.cli import render, settings
from appliance.cli.options import PassphraseFile
from appliance.cli.passphrase import passphrase
from appliance.errors import UsageError
from appliance.flows import key as flow
from appliance.store.client import AgentStatus

app = typer.Typer()


@app.command()
def unlock(
    context: typer.Context,
    passphrase_file: PassphraseFile = None,
    minutes: Annotated[int, typer.Option(min=1, max=7 * 24 * 60, help="Lock again after so many minutes.")] = 480,
) -> None:
    """Start the key agent, which holds the root key until `key lock` or until its time is up."""
    chosen = settings.writing(context)
    home = chosen.home()
    with passphrase(passphrase_file) as secret:
        status = flow.unlock(home, secret, chosen.operator(), ttl_s=minutes * 60)
    _show(chosen, "key.unlock", status)


@app.command()
def lock(context: typer.Context) -> None:
    """End the key agent; it forgets the root key."""
    chosen = settings.writing(context)
    locked = flow.lock(chosen.home(), chosen.operator())
    lines = ["the store is sealed" if locked else "the store was sealed already"]
    render.result(chosen, "key.lock", {"state": "sealed", "changed": locked}, lines)


@app.command()
def status(context: typer.Context) -> None:
    """Say whether the store is sealed, who unsealed it and until when."""
    chosen = settings.of(context)
    _show(chosen, "key.status", chosen.home().agent().status())


@app.command()
def rotate(
    context: typer.Context,
    ledger: Annotated[bool, typer.Option("--ledger", help="The keys that sign the ledger's tree heads.")] = False,
) -> None:
    """Change keys. The old ones sign the entry that hands over to the new ones, so who pinned the old can follow."""
    chosen = settings.writing(context)
    if not ledger:
        raise UsageError("say which keys to change", hint="appliance key rotate --ledger")
    done = flow.rotate_ledger(chosen.home(), chosen.operator())
    render.result(chosen, "key.rotate", _rotated_document(done), _rotated_lines(done))


def _rotated_document(done: flow.Rotated) -> dict[str, Any]:
    return {
        "entry": done.entry,
        "fingerprint_before": done.before,
        "fingerprint": done.after,
        "size": done.head.size,
        "note": done.head.note,
    }


def _rotated_lines(done: flow.Rotated) -> list[str]:
    return [
        f"entry {done.entry} hands over to the new keys; tree heads of more entries are signed by them",
        f"before {done.before}",
        f"now    {done.after}",
        "hand the new fingerprint to auditors; who pinned the old one is led to the new. Back up HOME/keys again",
    ]


def _show(chosen: settings.Settings, schema: str, status: AgentStatus) -> None:
    document = {"state": status.state, "who": status.who, "until": status.until}
    lines = [status.state if status.state == "sealed" else f"unsealed by {status.who} until {status.until}"]
    render.result(chosen, schema, document, lines)
