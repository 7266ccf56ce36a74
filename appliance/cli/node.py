"""`appliance node`: init, show."""

from __future__ import annotations

import typer

from appliance.cli import render, settings
from appliance.cli.settings import Settings
from appliance.flows import node
from appliance.store.nodes import NodeKey

app = typer.Typer()


@app.command()
def init(context: typer.Context) -> None:
    """Make this machine a compute node: a key pair in HOME, which needs neither ledger nor passphrase."""
    chosen = settings.writing(context)
    _show(chosen, "node.init", node.init(chosen.root))


@app.command()
def show(context: typer.Context) -> None:
    """Print the node's public key, one line for `train start --node`, and its fingerprint."""
    chosen = settings.of(context)
    _show(chosen, "node.show", node.show(chosen.root))


def _show(chosen: Settings, schema: str, key: NodeKey) -> None:
    document = {"key": key.line, "fingerprint": key.fingerprint}
    render.result(chosen, schema, document, [key.line, f"fingerprint {key.fingerprint}"])
