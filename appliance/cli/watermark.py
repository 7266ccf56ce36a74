"""`appliance watermark`: keygen, embed, detect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from appliance.cli import completing, render, settings
from appliance.cli.options import RunArgument
from appliance.flows.watermark.detect import detect as detect_flow
from appliance.flows.watermark.embed import embed as embed_flow
from appliance.flows.watermark.keygen import keygen as keygen_flow

app = typer.Typer()
ORDER = ("none", "bf16", "int8", "nf4", "int4_g128", "prune30", "prune50")
CLAIM = 13.4


@app.command()
def keygen(context: typer.Context) -> None:
    """Draw a watermark key. New runs are committed to it in the ledger before they are trained."""
    chosen = settings.writing(context)
    row = keygen_flow(chosen.home(), chosen.operator())
    document = {"key": row.id, "commitment": row.commitment, "key_epoch": row.key_epoch}
    lines = render.fields([("watermark key", row.id), ("commitment", row.commitment)])
    render.result(
        chosen, "watermark.keygen", document, [*lines, "runs that are reserved from now on are committed to it"]
    )


@app.command()
def embed(context: typer.Context, run: RunArgument) -> None:
    """Mark the adapter of a finished run. The marked adapter in RUN/released is the only one that may be released."""
    chosen = settings.writing(context)
    home, run = chosen.home(), chosen.run(run)
    facts = embed_flow(home, run, chosen.operator()).facts()
    render.result(chosen, "watermark.embed", facts, _embedded_lines(facts, str(home.run(run).released)))


@app.command()
def detect(
    context: typer.Context,
    suspect: Annotated[
        Path,
        typer.Argument(
            help="A directory with an adapter, with a model in safetensors (INT8 and NF4 too), or with a GGUF file."
        ),
    ],
    run: Annotated[
        str, typer.Option("--run", help="The run whose mark is looked for.", autocompletion=completing.runs)
    ],
    key: Annotated[str, typer.Option("--key", help="Refuse unless the ledger committed the run to this key.")] = "",
) -> None:
    """Look for the mark of a run in a suspect. Not finding it is a result too: exit status 0, `detected` false."""
    chosen = settings.writing(context)
    detected, certificate = detect_flow(chosen.home(), suspect, chosen.run(run), key, chosen.operator())
    facts = detected.facts()
    document = {**facts, "certificate": str(certificate)}
    render.result(chosen, "watermark.detect", document, _detected_lines(facts, certificate))


def _embedded_lines(facts: dict[str, Any], released: str) -> list[str]:
    predicted: dict[str, str] = facts["score_predicted"]
    lines = render.fields(
        [
            ("released adapter", released),
            ("strength", f"{facts['strength']} on {facts['modules']} layers"),
            ("score", f"{facts['score']}, p <= {facts['p_bound']}"),
        ]
    )
    lines.append("predicted score in a merged model; a mark is claimed from 13.4:")
    rows = [(attack, predicted[attack], _survival(predicted[attack])) for attack in ORDER]
    return lines + render.table(("after", "score", ""), rows)


def _survival(score: str) -> str:
    return "survives" if abs(float(score)) >= CLAIM else "may be lost"


def _detected_lines(facts: dict[str, Any], certificate: Path) -> list[str]:
    found = f"score {facts['score']}, p <= {facts['p_bound']} ({facts['keys_tested']} keys tested on this suspect)"
    sentence = (
        f"the mark of {facts['run_id']} is in this {facts['suspect_kind']}"
        if facts["detected"]
        else f"the mark of {facts['run_id']} was not found in this {facts['suspect_kind']}"
    )
    return [f"{sentence}: {found}", f"certificate: {certificate}"]
