"""`appliance report`: build, verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from appliance.cli import export, render, settings

app = typer.Typer(
    name="report", help="Reports for auditors, from the ledger alone: build, verify.", no_args_is_help=True
)


@app.command()
def build(
    context: typer.Context,
    run: Annotated[
        str,
        typer.Argument(help="The run, by id or unique name; it may be unfinished or failed, and the verdict says so."),
    ],
    out: Annotated[Path, typer.Option(help="Directory to make; it must not exist.")],
) -> None:
    """Write what the ledger says of a run as a page, as JSON, with its proofs and a verifier, into a directory."""
    from appliance.flows import report as flow

    chosen = settings.writing(context)
    sealed = flow.build(chosen.home(), chosen.run(run), out, chosen.operator())
    manifest = sealed.manifest
    document = {
        "report": manifest.id,
        "run": manifest.run_id,
        "path": str(out),
        "manifest_sha256": manifest.sha256(),
        "entry": sealed.index,
        "tree_size": sealed.head.size,
    }
    lines = render.fields([("report", manifest.id), ("page", out / "report.html"), ("ledger entry", sealed.index)])
    lines.append(f"check it on another machine: python3 -I {out}/verify.py --trusted-key FINGERPRINT")
    render.result(chosen, "report.build", document, lines)


app.command()(export.verify)
