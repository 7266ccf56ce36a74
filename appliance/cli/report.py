"""`appliance report`: build, verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from appliance.cli import completing, export, render, settings
from appliance.flows.release import report as flow
from appliance.flows.release.sealing import Sealed

app = typer.Typer()


@app.command()
def build(
    context: typer.Context,
    run: Annotated[
        str,
        typer.Argument(
            help="The run, by id or unique name; it may be unfinished or failed, and the verdict says so.",
            autocompletion=completing.runs,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Directory to make; it must not exist.")],
) -> None:
    """Write what the ledger says of a run as a page, as JSON, with its proofs and a verifier, into a directory."""
    chosen = settings.writing(context)
    sealed = flow.build(chosen.home(), chosen.run(run), out, chosen.operator())
    lines = render.fields(
        [("report", sealed.manifest.id), ("page", out / "report.html"), ("ledger entry", sealed.index)]
    )
    lines.append(f"check it on another machine: python3 -I {out}/verify.py --trusted-key FINGERPRINT")
    render.result(chosen, "report.build", _document(sealed, out), lines)


def _document(sealed: Sealed, out: Path) -> dict[str, Any]:
    manifest = sealed.manifest
    return {
        "report": manifest.id,
        "run": manifest.run_id,
        "path": str(out),
        "manifest_sha256": manifest.sha256(),
        "entry": sealed.index,
        "tree_size": sealed.head.size,
    }


app.command()(export.verify)
