"""`appliance evaluate`: run, compare, attention."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from appliance.cli import benchmarks, chatting, completing, render, settings, spending
from appliance.cli.options import RunArgument
from appliance.cli.settings import Settings
from appliance.errors import UsageError
from appliance.flows.evaluation import evaluate as flow
from appliance.flows.evaluation.attention import ORDERS, Drawing, draw
from appliance.flows.evaluation.benchmark import Asked
from appliance.flows.evaluation.evaluate import Cost, Evaluated
from appliance.report.heatmap import verdict

app = typer.Typer()


BAR_PERCENT = 0.1
NAMES = {"adapter": "the adapter", "marked": "the marked adapter, which may be released"}


@app.command()
def run(
    context: typer.Context,
    run: RunArgument,
    dataset: Annotated[
        str,
        typer.Option(
            "--dataset", help="Held-out data (purpose evaluation), by name or id.", autocompletion=completing.datasets
        ),
    ] = "",
    epsilon: Annotated[float, typer.Option(min=0.01, help="Epsilon that this spends of the held-out data.")] = 1.0,
    public_tokens: Annotated[
        int, typer.Option(min=0, help="Predictions on public text, as far as it goes; costs no privacy.")
    ] = 8000,
    benchmark: Annotated[
        str, typer.Option(help="Instead: a public benchmark, a JSONL file, or micro:N for N generated tasks.")
    ] = "",
    items: Annotated[int | None, typer.Option(min=1, help="The first so many items of the benchmark.")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens that an answer to an item may have.")] = 256,
) -> None:
    """Measure the gain over the base: on held-out private data, with noise and charged, or on a public benchmark.

    The first is a differentially private release with a budget of its own: charged in full as soon as it starts. The
    second costs no privacy, and is for public files only.
    """
    if bool(dataset) == bool(benchmark):
        raise UsageError("one of --dataset and --benchmark is measured on", where="--dataset")
    if benchmark:
        benchmarks.run(settings.writing(context), run, Asked(benchmark=benchmark, items=items, most_tokens=tokens))
    else:
        _run_private(settings.of(context), run, dataset, epsilon, public_tokens)


@app.command()
def compare(
    context: typer.Context,
    first: RunArgument,
    second: RunArgument,
    benchmark: Annotated[str, typer.Option(help="The benchmark on which both were measured: the file, or micro:N.")],
) -> None:
    """Compare the models of two runs item by item, from their newest measurements on a benchmark."""
    benchmarks.compare(settings.of(context), first, second, benchmark)


@app.command()
def attention(
    context: typer.Context,
    run: RunArgument,
    out: Annotated[Path, typer.Option("--out", help="The HTML file to make; it holds the prompt.")],
    prompt: Annotated[str, typer.Option(help="Public text, or your own; - reads it from the input. Never a record.")],
    variant: Annotated[
        Literal["base", "adapter", "marked"], typer.Option(help="Whose attention is drawn.")
    ] = "adapter",
    orders: Annotated[int, typer.Option(min=0, help="Random orders of the test of faithfulness; 0 for none.")] = ORDERS,
) -> None:
    """Draw where a model looks on one prompt, with a test of whether that shows what mattered. Nothing is recorded."""
    chosen = settings.writing(context)
    drawing = Drawing(variant=variant, orders=orders)
    with render.progress(chosen, "drawing") as bar:
        bar.update(0, 0, "in the worker")
        found = draw(chosen.home(), chosen.run(run), chatting.take_prompt(prompt), out, drawing)
    document = {"out": str(out), "tokens": len(found.tokens), "row_error": found.row_error, "seconds": found.seconds}
    document["faithfulness"] = found.faithfulness.model_dump() if found.faithfulness else None
    lines = [f"written to {out}: {len(found.tokens)} tokens in {found.seconds:.2f} s", verdict(found.faithfulness)]
    render.result(chosen, "evaluate.attention", document, lines)


def _run_private(chosen: Settings, run: str, dataset: str, epsilon: float, public_tokens: int) -> None:
    home, run = chosen.home(), chosen.run(run)
    if chosen.dry_run:
        cost = flow.preview(home, run, dataset, epsilon)
        render.result(chosen, "evaluate.run", _cost_document(cost), _cost_lines(cost))
        return
    with render.progress(chosen, "evaluating") as bar:
        done = flow.evaluate(
            home, run, dataset, epsilon, public_tokens, chosen.operator(), lambda: bar.update(0, 0, "in the worker")
        )
    render.result(chosen, "evaluate.run", _document(done), _lines(done))


def _cost_document(cost: Cost) -> dict[str, Any]:
    plan = cost.evaluable.plan
    return {
        "dry_run": True,
        "dataset": cost.evaluable.dataset.id,
        "comparisons": list(cost.evaluable.names),
        "epsilon": cost.epsilon,
        "delta": plan.delta,
        "noise_multiplier": plan.noise_multiplier,
        "noise_nat": plan.noise_nat,
        **spending.afforded_document(cost.afforded),
    }


def _cost_lines(cost: Cost) -> list[str]:
    found, plan = cost.evaluable, cost.evaluable.plan
    return render.fields(
        [
            ("would cost", f"epsilon {cost.epsilon:.4f} at delta {plan.delta:.3g} of {found.dataset.name}"),
            ("lifetime budget", spending.afforded_line(cost.afforded)),
            ("noise", f"{plan.noise_nat:.4f} nat per token on each gain, over {plan.declared_units} declared units"),
            ("compared with the base", ", ".join(found.names)),
        ]
    )


def _document(done: Evaluated) -> dict[str, Any]:
    return {**done.settled.facts(), **spending.afforded_document(done.afforded)}


def _lines(done: Evaluated) -> list[str]:
    facts = done.settled.facts()
    lines = [line for comparison in facts["comparisons"] for line in _gain_lines(comparison)]
    if len(facts["comparisons"]) == 1:
        lines.append("no watermark is embedded yet, so only the unmarked adapter was compared with the base")
    lines += _public_lines(facts["public"]) if facts["public"] else []
    lines.append(
        f"charged: epsilon {facts['epsilon_charged']} at delta {float(facts['delta']):.3g} of the held-out data"
    )
    lines.append(f"their lifetime budget: {spending.afforded_line(done.afforded)}")
    return lines


def _gain_lines(comparison: dict[str, str]) -> list[str]:
    gain, low, high = (float(comparison[name]) for name in ("gain_nat", "low", "high"))
    verdict = (
        "an improvement"
        if low > 0
        else "a loss of quality"
        if high < 0
        else "not distinguishable from no change at all"
    )
    return [
        f"{NAMES[comparison['name']]}: gain over the base on held-out data {gain:+.4f} nat per token",
        f"  95 % interval {low:+.4f} to {high:+.4f}, noise and sampling counted: {verdict}",
    ]


def _public_lines(public: dict[str, str]) -> list[str]:
    losses = ", ".join(
        f"{name} {float(public[key]):.4f}"
        for name, key in (("base", "loss_base"), ("adapter", "loss_adapter"), ("marked", "loss_marked"))
        if key in public
    )
    lines = [f"public text, {public['tokens']} predictions: loss {losses} nat per token"]
    if "change_percent" in public:
        change, low, high = (float(public[name]) for name in ("change_percent", "low", "high"))
        within = "within" if max(abs(low), abs(high)) <= BAR_PERCENT else "not shown to be within"
        lines.append(
            f"  the watermark changes it by {change:+.3f} % (95 % interval {low:+.3f} to {high:+.3f}): "
            f"{within} {BAR_PERCENT:g} %"
        )
    return lines
