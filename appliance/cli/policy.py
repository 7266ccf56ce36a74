"""`appliance policy`: check, show, activate."""

from __future__ import annotations

from typing import Annotated

import typer

from appliance.cli import completing, render, settings
from appliance.flows import policy as flow

app = typer.Typer()
PolicyFile = Annotated[
    str, typer.Argument(help="A policy file, or: default, demo, health, finance.", autocompletion=completing.policies)
]


@app.command()
def check(context: typer.Context, file: PolicyFile) -> None:
    """Check a policy file against its schema; changes nothing."""
    policy = flow.load(file)
    document = {"name": policy.name, "sha256": policy.digest, "classes": sorted(policy.classes)}
    lines = [f"policy {policy.name} is valid", f"sha256 {policy.digest}"]
    render.result(settings.of(context), "policy.check", document, lines)


@app.command()
def show(context: typer.Context) -> None:
    """Show the policy in force, with the exact bytes that were activated."""
    chosen = settings.of(context)
    policy = flow.show(chosen.home())
    text = policy.text.decode()
    document = {"name": policy.name, "sha256": policy.digest, "text": text}
    render.result(chosen, "policy.show", document, [f"# sha256 {policy.digest}", *render.document_lines(text)])


@app.command()
def activate(context: typer.Context, file: PolicyFile) -> None:
    """Put a policy in force; the ledger keeps its digest and its bytes."""
    chosen = settings.of(context)
    policy = flow.load(file)
    if chosen.dry_run:
        render.result(chosen, "policy.activate", {"name": policy.name, "dry_run": True}, ["valid; nothing changed"])
        return
    done = flow.activate(chosen.home(), policy, chosen.operator())
    document = {"name": policy.name, "sha256": policy.digest, "replaced": done.replaced}
    render.result(chosen, "policy.activate", document, [f"policy {policy.name} is in force (was {done.replaced})"])
