"""`appliance train`: plan, start, status, watch, resume, abort; `join` stands in `machines`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from appliance.cli import machines, planning, render, settings
from appliance.errors import UsageError

if TYPE_CHECKING:
    from appliance.flows.home import Home
    from appliance.flows.plan import Resolved
    from appliance.flows.train import Step
    from appliance.ledger.rows import RunRow
    from appliance.policy.run_file import RunFile
    from appliance.records import EngineOptions

app = typer.Typer(
    name="train", help="Private training: plan, start, status, watch, resume, abort, join.", no_args_is_help=True
)
RunFileArgument = Annotated[Path, typer.Argument(help="A run file, written by `train plan`.")]
RunArgument = Annotated[str, typer.Argument(help="The run's id, or its name if no other has it.")]
DeviceOption = Annotated[str, typer.Option(help="cpu or cuda.")]
DtypeOption = Annotated[str, typer.Option(help="auto, bfloat16 or float32.")]
MemoryOption = Annotated[
    float | None,
    typer.Option(min=0, help="GiB of memory to count on, with --device cuda of each GPU's. Default: what is free."),
]


@app.command()
def plan(
    context: typer.Context,
    dataset: Annotated[str, typer.Argument(help="Dataset, by name or id.")],
    model: Annotated[str, typer.Argument(help="Base model, by name.")],
    epsilon: Annotated[float, typer.Option(help="Epsilon of this run at delta 1/(100 declared units).")],
    out: Annotated[Path | None, typer.Option(help="Write the run file here.")] = None,
    name: Annotated[str, typer.Option(help="A name for the run.")] = "run",
    steps: Annotated[int | None, typer.Option(min=1, help="Sampled steps.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Expected (logical) batch size, in units.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=8, help="Longer records are truncated.")] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="Rank of the adapter.")] = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "auto",
    memory: MemoryOption = None,
) -> None:
    """Write a complete, commented run file; say what it costs in privacy, memory and time. Opens no private data."""
    from appliance.flows import forecast
    from appliance.flows import plan as flow
    from appliance.policy import run_file

    chosen = settings.of(context)
    if out is not None and out.exists() and not chosen.yes:
        raise UsageError(f"{out} exists", hint="choose another name, or overwrite it with `appliance --yes train plan`")
    home = chosen.home()
    wish = flow.Wish(
        epsilon=epsilon, name=name, steps=steps, expected_batch_size=batch, lr=lr, max_tokens=max_tokens, rank=rank
    )
    run = flow.draft(home, dataset, model, wish)
    limit = _bytes(memory)
    engine = _engine(device, dtype, None, 0, run, memory=limit)
    run = forecast.sized(home, run, engine, limit)
    resolved, before, after = flow.preview(home, run)
    expected = forecast.forecast(home, resolved, _engine(device, dtype, None, 0, run, memory=limit), limit)
    text = run_file.render(run)
    if out is not None and not chosen.dry_run:
        out.write_text(text)
    table = list(forecast.alternatives(resolved.plan))
    document = {
        **_plan_document(resolved), **planning.document(expected, table),
        "epsilon_before": before, "epsilon_after": after, "run_file": text,
    }  # fmt: skip
    lines = [*_plan_lines(resolved, before, after), *planning.lines(expected), "", *planning.table(table)]
    lines.append(f"wrote {out}; start it with `appliance train start {out}`" if out else text.rstrip())
    render.result(chosen, "train.plan", document, lines)


@app.command()
def start(
    context: typer.Context,
    run_file: RunFileArgument,
    detach: Annotated[bool, typer.Option("--detach", help="Return at once; follow with `train watch`.")] = False,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "auto",
    physical_tokens: Annotated[
        int | None,
        typer.Option(min=8, help="Tokens computed at once; memory follows it. Default: as the run file says."),
    ] = None,
    memory: MemoryOption = None,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 lets torch choose.")] = 0,
    nproc: Annotated[
        int, typer.Option(min=1, max=64, help="Processes that train together on each machine, one for each GPU.")
    ] = 1,
    nnodes: machines.NnodesOption = 1,
    rendezvous: machines.RendezvousOption = "",
    node: machines.NodeOption = None,
    join_timeout: machines.TimeoutOption = 1800.0,
) -> None:
    """Reserve the budget, train in the sandboxed worker, and charge the attempts that were made."""
    from appliance.flows import detached, forecast, plan, reserve
    from appliance.flows import train as flow

    chosen = settings.of(context)
    home, run = chosen.home(), plan.load(run_file)
    engine = _engine(device, dtype, physical_tokens, threads, run, nproc, _bytes(memory))
    others = machines.chosen(nnodes, rendezvous, node, join_timeout)
    if others and detach:
        raise UsageError("a run on several machines does not detach", hint="its tickets have to be carried meanwhile")
    if chosen.dry_run:
        resolved, before, after = plan.preview(home, run)
        expected = forecast.forecast(home, resolved, engine, _bytes(memory))
        lines = [*_plan_lines(resolved, before, after), *planning.lines(expected)]
        render.result(chosen, "train.start", {"dry_run": True}, lines)
        return
    row = reserve.reserve(home, run, engine, chosen.operator(), memory=_bytes(memory))
    if detach:
        detached.resume(home, row.id, chosen.operator())
        lines = [f"started {row.id}; follow it with `appliance train watch {row.id}`"]
        render.result(chosen, "train.start", _run_document(row), lines)
        return
    with render.progress(chosen, row.id) as bar:
        row = flow.resume(home, row.id, chosen.operator(), _watch(bar), others=others, tell=machines.tell(chosen))
    lines = [*_tested_lines(home, row), *_settled_lines(row, str(home.runs / row.id))]
    render.result(chosen, "train.start", _run_document(row), lines)


@app.command()
def resume(
    context: typer.Context,
    run: RunArgument,
    nproc: Annotated[
        int | None,
        typer.Option(min=1, max=64, help="Processes that train together on each machine. Default: as it was started."),
    ] = None,
    nnodes: machines.NnodesOption = 1,
    rendezvous: machines.RendezvousOption = "",
    node: machines.NodeOption = None,
    join_timeout: machines.TimeoutOption = 1800.0,
) -> None:
    """Go on with an interrupted run. Attempts that were lost stay charged; no step is sampled twice alike."""
    from appliance.flows import train as flow

    chosen, others = settings.writing(context), machines.chosen(nnodes, rendezvous, node, join_timeout)
    home, run = chosen.home(), chosen.run(run)
    with render.progress(chosen, run) as bar:
        told = machines.tell(chosen)
        row = flow.resume(home, run, chosen.operator(), _watch(bar), nproc=nproc, others=others, tell=told)
    render.result(chosen, "train.resume", _run_document(row), _settled_lines(row, str(home.runs / row.id)))


@app.command()
def abort(context: typer.Context, run: RunArgument) -> None:
    """End a run for good and charge the attempts it made; the rest of its reservation is given back."""
    from appliance.flows import train as flow

    chosen = settings.writing(context)
    row = flow.abort(chosen.home(), chosen.run(run), chosen.operator())
    lines = [f"{row.id} is {row.state}: {row.charged_attempts} attempts charged, epsilon {row.epsilon_charged}"]
    render.result(chosen, "train.abort", _run_document(row), lines)


@app.command()
def status(context: typer.Context) -> None:
    """List the runs with their public progress."""
    from appliance.flows import train as flow

    chosen = settings.of(context)
    listed = flow.status(chosen.home())
    head = ("run", "name", "state", "steps", "attempts", "epsilon reserved", "epsilon charged")
    cells = [
        (
            row.id, row.name, _state(row, alive), f"{step.steps}/{step.plan.steps}",
            f"{step.attempts}/{step.plan.attempts}", row.epsilon_reserved, row.epsilon_charged or "-",
        )
        for row, step, alive in listed
    ]  # fmt: skip
    document = {"runs": [{**_run_document(row), "alive": alive, "steps": step.steps} for row, step, alive in listed]}
    render.result(chosen, "train.status", document, render.table(head, cells) if cells else ["no runs yet"])


@app.command()
def watch(context: typer.Context, run: RunArgument) -> None:
    """Follow a run that another process supervises, until it ends. Ctrl-C stops watching, not the run."""
    from appliance.flows import train as flow
    from appliance.flows.jobs import supervisor_of
    from appliance.flows.settle import OPEN_STATES

    chosen = settings.of(context)
    home, run = chosen.home(), chosen.run(run)
    with home.ledger(writable=False) as ledger:
        row = flow.find(ledger, run)
    with render.progress(chosen, run) as bar:
        show, idle = _watch(bar), 0
        while row.state in OPEN_STATES and idle < 20:  # a detached supervisor takes a moment to come up
            idle = 0 if supervisor_of(home.runs / row.id) is not None else idle + 1
            show(flow.progress_of(home, row))
            time.sleep(0.5)
            with home.ledger(writable=False) as ledger:
                row = flow.find(ledger, run)
    render.result(chosen, "train.watch", _run_document(row), _settled_lines(row, str(home.runs / row.id)))


app.command()(machines.join)


def _bytes(gib: float | None) -> int | None:
    return None if gib is None else int(gib * 2**30)


def _engine(
    device: str,
    dtype: str,
    physical_tokens: int | None,
    threads: int,
    run: RunFile,
    nproc: int = 1,
    memory: int | None = None,
) -> EngineOptions:
    from appliance.flows.machine import engine_options

    return engine_options(
        device, dtype, physical_tokens=physical_tokens, threads=threads, nproc=nproc, choice=run.engine, memory=memory
    )


def _watch(bar: render.Bar) -> Callable[[Step], None]:
    from appliance.flows.progress import spent_text

    def show(step: Step) -> None:
        bar.update(step.steps, step.plan.steps, spent_text(step))

    return show


def _state(row: RunRow, alive: bool) -> str:
    return "interrupted" if row.state == "running" and not alive else row.state


def _plan_document(resolved: Resolved) -> dict[str, Any]:
    plan = resolved.plan.model_dump(mode="json")
    return {"plan": plan, "trainable_parameters": resolved.parameters, "dataset": resolved.dataset.id}


def _plan_lines(resolved: Resolved, before: float, after: float) -> list[str]:
    plan = resolved.plan
    cap = resolved.policy.rules(resolved.dataset.class_).max_epsilon
    return render.fields(
        [
            ("guarantee", f"({plan.epsilon:g}, {plan.delta:.3g})-DP, unit of privacy: {plan.unit.kind}"),
            ("noise multiplier", f"{plan.noise_multiplier:.4f} at clip norm {plan.max_grad_norm:g} ({plan.clipping})"),
            *(("sampling", line) for line in planning.sampling(plan)),
            ("adapter", f"{resolved.parameters} parameters on {resolved.model.id}"),
            ("lifetime budget", f"epsilon {before:.3f} spent, {after:.3f} after this run, cap {cap:g}"),
        ]
    )


def _run_document(row: RunRow) -> dict[str, Any]:
    return {
        "run": row.id,
        "name": row.name,
        "state": row.state,
        "dataset": row.dataset_id,
        "model": row.model_id,
        "reserved_attempts": row.reserved_attempts,
        "charged_attempts": row.charged_attempts,
        "epsilon_reserved": row.epsilon_reserved,
        "epsilon_charged": row.epsilon_charged,
        "delta": row.delta,
        "adapter_sha256": row.adapter_sha256,
    }


def _tested_lines(home: Home, row: RunRow) -> list[str]:
    from appliance.flows import selftest

    tested = selftest.latest(home, row.id)
    return [selftest.summary(tested)] if tested else []


def _settled_lines(row: RunRow, directory: str) -> list[str]:
    from appliance.flows.progress import guarantee

    if row.epsilon_charged is None:
        return [f"{row.id} is {row.state}"]
    lines = [f"{row.id} is {row.state}: {row.charged_attempts} attempts charged, epsilon {row.epsilon_charged}"]
    if row.adapter_sha256:
        lines += [guarantee(row), f"adapter: {directory}/adapter"]
    return lines
