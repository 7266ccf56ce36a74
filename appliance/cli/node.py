"""`appliance node`: init, show."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from appliance.cli import render, settings
from appliance.cli.settings import Settings

if TYPE_CHECKING:
    from appliance.store.nodes import NodeKey

app = typer.Typer(name="node", help="Compute nodes of a run on several machines: init, show.", no_args_is_help=True)


@app.command()
def init(context: typer.Context) -> None:
    """Make this machine a compute node: a key pair in HOME, which needs neither ledger nor passphrase."""
    from appliance.flows import node

    chosen = settings.writing(context)
    _show(chosen, "node.init", node.init(chosen.root))


@app.command()
def show(context: typer.Context) -> None:
    """Print the node's public key, one line for `train start --node`, and its fingerprint."""
    from appliance.flows import node

    chosen = settings.of(context)
    _show(chosen, "node.show", node.show(chosen.root))


def _show(chosen: Settings, schema: str, key: NodeKey) -> None:
    document = {"key": key.line, "fingerprint": key.fingerprint}
    render.result(chosen, schema, document, [key.line, f"fingerprint {key.fingerprint}"])
