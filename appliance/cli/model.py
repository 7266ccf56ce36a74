"""`appliance model`: import, list, verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from appliance.cli import completing, render, settings
from appliance.flows.model.import_model import import_model, try_import
from appliance.flows.model.verify import verify as verify_models
from appliance.ledger.rows import ModelRow

app = typer.Typer()


@app.command("import")
def import_(
    context: typer.Context,
    source: Annotated[Path, typer.Argument(help="A Hugging Face directory with safetensors, or a GGUF file.")],
    name: Annotated[str, typer.Option(help="The name by which run files refer to it.")],
) -> None:
    """Copy or convert a base model into the home. Pickle weights and remote code are refused."""
    chosen = settings.of(context)
    if chosen.dry_run:
        row = try_import(chosen.home(), source, name)
        render.result(
            chosen, "model.import", {"dry_run": True, **_document(row)}, render.fields(_document(row).items())
        )
        return
    with render.progress(chosen, "importing in the sandbox") as bar:
        bar.update(0, 0, name)
        made = import_model(chosen.home(), source, name, chosen.operator())
    verb = "was here already as" if made.already else "imported as"
    lines = [f"{verb} {made.model.id}", *render.fields(_document(made.model).items())]
    render.result(chosen, "model.import", {**_document(made.model), "already": made.already}, lines)


@app.command("list")
def list_(context: typer.Context) -> None:
    """List the base models."""
    chosen = settings.of(context)
    with chosen.home().rows() as catalog:
        rows = catalog.models.list()
    head = ("name", "architecture", "parameters", "licence", "from", "sha256")
    cells = [(r.id, r.architecture, r.parameters, r.licence, r.source_format, r.sha256[:16]) for r in rows]
    lines = render.table(head, cells) if rows else ["no models yet"]
    render.result(chosen, "model.list", {"models": [_document(row) for row in rows]}, lines)


@app.command()
def verify(
    context: typer.Context,
    model: Annotated[str | None, typer.Argument(help="Name; all if omitted.", autocompletion=completing.models)] = None,
) -> None:
    """Compare every file of the base models with its digest in the ledger."""
    chosen = settings.of(context)
    rows = verify_models(chosen.home(), model)
    lines = [f"{row.id}: intact" for row in rows] or ["no models yet"]
    render.result(chosen, "model.verify", {"intact": [row.id for row in rows]}, lines)


def _document(row: ModelRow) -> dict[str, Any]:
    return {
        "name": row.id,
        "sha256": row.sha256,
        "architecture": row.architecture,
        "parameters": row.parameters,
        "licence": row.licence,
        "source_format": row.source_format,
        "source_sha256": row.source_sha256,
    }
