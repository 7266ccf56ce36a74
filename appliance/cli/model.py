"""`appliance model`: import, list, verify, chat, merge, quantize."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from appliance.cli import chatting, completing, converting, render, settings
from appliance.cli.options import RunArgument
from appliance.errors import UsageError
from appliance.flows.evaluation.chat import Manner
from appliance.flows.evaluation.chat import chat as chat_flow
from appliance.flows.model.import_model import import_model, try_import
from appliance.flows.model.verify import verify as verify_models
from appliance.flows.release.convert import PREDICTIONS, Wanted, convert
from appliance.ledger.rows import ModelRow

app = typer.Typer()

OutOption = Annotated[Path, typer.Option("--out", help="The directory to make; it must not exist.")]
PredictionsOption = Annotated[
    int, typer.Option(min=0, help="Predictions on public text by which it is compared, as far as it goes; 0 for none.")
]
MaxLossOption = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="Gate: percentage points of accuracy it may lose, at the bad end of the interval. "
        "The gate of the run file holds beside it.",
    ),
]


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


@app.command()
def chat(
    context: typer.Context,
    run: RunArgument,
    prompt: Annotated[
        str, typer.Option(help="Ask this and end; - reads it from the input. Left out: ask line by line.")
    ] = "",
    tokens: Annotated[int, typer.Option(min=1, help="An answer has at most so many tokens.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, max=10, help="0 always takes the likeliest token.")] = 0.0,
) -> None:
    """Ask base, adapter and marked adapter of a run side by side. Nothing is recorded, and no dataset key is needed."""
    chosen = settings.writing(context)
    home, run, manner = chosen.home(), chosen.run(run), Manner(most_tokens=tokens, temperature=temperature)
    if prompt:
        once = chatting.Once(chosen, chatting.take_prompt(prompt))
        chat_flow(home, run, once, manner)
        render.result(chosen, "model.chat", {"run": run, "answers": once.answers}, [])
        return
    if chosen.json:
        raise UsageError("with --json one prompt is asked", hint="give --prompt TEXT, or --prompt - and the input")
    chat_flow(home, run, chatting.Interactive(chosen), manner)


@app.command()
def merge(
    context: typer.Context,
    run: RunArgument,
    out: OutOption,
    predictions: PredictionsOption = PREDICTIONS,
    max_loss: MaxLossOption = None,
) -> None:
    """Write the model of a run whole: its marked adapter merged into the base, in the base's precision."""
    wanted = Wanted(format="merged", out=out, predictions=predictions, max_loss=max_loss)
    _convert(context, "model.merge", run, wanted)


@app.command()
def quantize(
    context: typer.Context,
    run: RunArgument,
    out: OutOption,
    to: Annotated[str, typer.Option(help="int8, nf4 (safetensors), or a GGUF file of q8_0, q4_1, q4_0.")],
    predictions: PredictionsOption = PREDICTIONS,
    max_loss: MaxLossOption = None,
) -> None:
    """Write the model of a run quantised, after merging, and say what it lost. What lost its mark is not written."""
    if to not in converting.FORMATS:
        raise UsageError(f"there is no format {to}", hint=f"one of {', '.join(converting.FORMATS)}", where="--to")
    wanted = Wanted(format=converting.FORMATS[to], out=out, predictions=predictions, max_loss=max_loss)
    _convert(context, "model.quantize", run, wanted)


def _convert(context: typer.Context, schema: str, run: str, wanted: Wanted) -> None:
    chosen = settings.writing(context)
    home, run = chosen.home(), chosen.run(run)
    with render.progress(chosen, "converting in the sandbox") as bar:
        bar.update(0, 0, wanted.format)
        made = convert(home, run, wanted, chosen.operator())
    render.result(chosen, schema, {**made.facts(), "out": str(wanted.out)}, converting.lines(made, wanted.out))


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
