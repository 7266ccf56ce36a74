"""`appliance train`: plan, start, status, watch, resume, abort; `join` stands in `partners`."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from appliance.cli import completing, partners, planning, render, runs, settings, spending
from appliance.cli.options import DeviceOption, DtypeOption, MemoryOption, OpenRunArgument, RunArgument, RunFileArgument
from appliance.cli.settings import Settings
from appliance.errors import UsageError
from appliance.flows.budget import Afforded
from appliance.flows.home import Home
from appliance.flows.run import abort as abort_flow
from appliance.flows.run import begin, detached, forecast, listing, reserve
from appliance.flows.run import plan as plan_flow
from appliance.flows.run import train as train_flow
from appliance.flows.run.alternatives import Alternative, list_alternatives
from appliance.flows.run.forecast import Forecast
from appliance.flows.run.hardware import engine_options, idle_gpu
from appliance.flows.run.partners import Partners
from appliance.flows.run.plan import PlanRequest, Resolved
from appliance.jobs.job import EngineOptions
from appliance.ledger.rows import RunRow
from appliance.policy import run_file as run_files
from appliance.policy.run_file import RunFile

app = typer.Typer()


@app.command()
def plan(
    context: typer.Context,
    dataset: Annotated[str, typer.Argument(help="Dataset, by name or id.", autocompletion=completing.datasets)],
    model: Annotated[str, typer.Argument(help="Base model, by name.", autocompletion=completing.models)],
    epsilon: Annotated[float, typer.Option(help="Epsilon of this run at delta 0.9/(100 declared units).")],
    out: Annotated[Path | None, typer.Option(help="Write the run file here.")] = None,
    name: Annotated[
        str | None, typer.Option(help="A name for the run, which no other has. Default: like the file.")
    ] = None,
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
    chosen = settings.of(context)
    if out is not None and out.exists() and not chosen.yes:
        raise UsageError(f"{out} exists", hint="choose another name, or overwrite it with `appliance --yes train plan`")
    request = PlanRequest(
        epsilon=epsilon, name=name, named_like=_like(out), steps=steps, expected_batch_size=batch, lr=lr,
        max_tokens=max_tokens, rank=rank,
    )  # fmt: skip
    run = plan_flow.draft(chosen.home(), dataset, model, request)
    drafted = _draft(chosen.home(), run, device, dtype, _bytes(memory))
    if out is not None and not chosen.dry_run:
        out.write_text(drafted.text)
    render.result(chosen, "train.plan", drafted.document(), drafted.lines(out, chosen.dry_run))


@dataclass(frozen=True, slots=True)
class _Draft:
    """A run file that fits this machine, the plan that follows from it, and what it needs."""

    text: str
    resolved: Resolved
    afforded: Afforded
    expected: Forecast
    others: list[Alternative]
    idle_gpu: str

    def document(self) -> dict[str, Any]:
        parts = {**runs.plan_document(self.resolved), **planning.document(self.expected, self.others)}
        parts |= {"idle_gpu": self.idle_gpu or None}
        return {**parts, **spending.afforded_document(self.afforded), "run_file": self.text}

    def lines(self, out: Path | None, dry_run: bool) -> list[str]:
        lines = [*runs.plan_lines(self.resolved, self.afforded), *planning.lines(self.expected)]
        lines += [*planning.unused(self.idle_gpu), ""]
        device = self.expected.engine.device
        start = f"appliance train start {out}" + (f" --device {device}" if device != "cpu" else "")
        written = f"would write {out}" if dry_run else f"wrote {out}; start it with `{start}`"
        return [*lines, *planning.table(self.others), written if out else self.text.rstrip()]


def _draft(home: Home, run: RunFile, device: str, dtype: str, memory: int | None) -> _Draft:
    run = forecast.fit_batch(home, run, _engine(device, dtype, None, 0, run, memory=memory), memory)
    resolved, afforded = plan_flow.preview(home, run)
    expected = forecast.forecast(home, resolved, _engine(device, dtype, None, 0, run, memory=memory), memory)
    others = list_alternatives(home, resolved)
    idle = idle_gpu() if expected.engine.device == "cpu" else ""
    return _Draft(run_files.render(run), resolved, afforded, expected, others, idle)


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
    nnodes: partners.NnodesOption = 1,
    rendezvous: partners.RendezvousOption = "",
    node: partners.NodeOption = None,
    join_timeout: partners.TimeoutOption = 1800.0,
    again: Annotated[bool, typer.Option("--again", help="Train a run file once more, which spends once more.")] = False,
) -> None:
    """Reserve the budget, train in the sandboxed worker, and charge the attempts that were made.

    Started again, a run file goes on with its run where that is open, and is refused where it has ended.
    """
    chosen = settings.of(context)
    home, run = chosen.home(), plan_flow.load(run_file)
    engine = _engine(device, dtype, physical_tokens, threads, run, nproc, _bytes(memory))
    others = partners.choose(nnodes, rendezvous, node, join_timeout)
    if others and detach:
        raise UsageError("a run on several machines does not detach", hint="its tickets have to be carried meanwhile")
    run, row = (begin.rename(home, run), None) if again else (run, begin.find_open(home, run))
    if chosen.dry_run:
        _preview(chosen, run, row, engine, _bytes(memory))
        return
    row = _reserve(chosen, run, row, engine, _bytes(memory))
    row, lines = _detach(chosen, row) if detach else _train(chosen, row, others)
    render.result(chosen, "train.start", runs.document(row), lines)


def _preview(chosen: Settings, run: RunFile, row: RunRow | None, engine: EngineOptions, memory: int | None) -> None:
    """Say what a start would do."""
    home = chosen.home()
    if row is not None:
        lines = [f"would go on with {row.id}, which is {row.state}; nothing more would be reserved"]
    else:
        resolved, afforded = plan_flow.preview(home, run)
        expected = forecast.forecast(home, resolved, engine, memory)
        lines = [*runs.plan_lines(resolved, afforded), *planning.lines(expected)]
    render.result(chosen, "train.start", {"dry_run": True, "run": row.id if row else None}, lines)


def _reserve(chosen: Settings, run: RunFile, row: RunRow | None, engine: EngineOptions, memory: int | None) -> RunRow:
    """Reserve a run, unless there is one that can go on."""
    if row is None:
        return reserve.reserve(chosen.home(), run, engine, chosen.operator(), memory=memory)
    render.note(chosen, f"going on with {row.id}, which is {row.state}; nothing more is reserved")
    return row


def _like(out: Path | None) -> str:
    """Name a run like the file that is written for it."""
    return out.stem if out is not None and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}", out.stem) else "run"


def _detach(chosen: Settings, row: RunRow) -> tuple[RunRow, list[str]]:
    detached.resume(chosen.home(), row.id, chosen.operator())
    return row, [f"started {row.id}; follow it with `appliance train watch {row.id}`"]


def _train(chosen: Settings, row: RunRow, others: Partners | None) -> tuple[RunRow, list[str]]:
    home, told = chosen.home(), partners.tell(chosen)
    with render.progress(chosen, row.id) as bar:
        row = train_flow.resume(home, row.id, chosen.operator(), runs.watch(bar), others=others, tell=told)
    return row, [*runs.tested_lines(home, row), *runs.settled_lines(home, row)]


@app.command()
def resume(
    context: typer.Context,
    run: OpenRunArgument,
    nproc: Annotated[
        int | None,
        typer.Option(min=1, max=64, help="Processes that train together on each machine. Default: as it was started."),
    ] = None,
    nnodes: partners.NnodesOption = 1,
    rendezvous: partners.RendezvousOption = "",
    node: partners.NodeOption = None,
    join_timeout: partners.TimeoutOption = 1800.0,
) -> None:
    """Go on with an interrupted run. Attempts that were lost stay charged; no step is sampled twice alike."""
    chosen, others = settings.writing(context), partners.choose(nnodes, rendezvous, node, join_timeout)
    home, run, told = chosen.home(), chosen.run(run), partners.tell(chosen)
    with render.progress(chosen, run) as bar:
        watch = runs.watch(bar)
        row = train_flow.resume(home, run, chosen.operator(), watch, nproc=nproc, others=others, tell=told)
    render.result(chosen, "train.resume", runs.document(row), runs.settled_lines(home, row))


@app.command()
def abort(context: typer.Context, run: OpenRunArgument) -> None:
    """End a run for good and charge the attempts it made; the rest of its reservation is given back."""
    chosen = settings.of(context)
    if chosen.dry_run:
        _preview_abort(chosen, chosen.run(run))
        return
    row = abort_flow.abort(chosen.home(), chosen.run(run), chosen.operator())
    render.result(chosen, "train.abort", runs.document(row), [runs.charged_line(row)])


def _preview_abort(chosen: Settings, run_id: str) -> None:
    seen = listing.look(chosen.home(), run_id)
    train_flow.require_open(seen.row)
    made = f"{seen.step.attempts} of {seen.step.plan.attempts} attempts so far"
    lines = [f"would end {run_id}, which is {seen.row.state}, and charge what it made: {made}"]
    render.result(chosen, "train.abort", {"dry_run": True, **runs.document(seen.row)}, lines)


@app.command()
def status(context: typer.Context) -> None:
    """List the runs with their public progress."""
    chosen = settings.of(context)
    listed = listing.list_runs(chosen.home())
    documents = [
        {**runs.document(one.row), "state": one.state, "alive": one.alive, "steps": one.step.steps} for one in listed
    ]
    render.result(chosen, "train.status", {"runs": documents}, runs.table(listed))


@app.command()
def watch(context: typer.Context, run: RunArgument) -> None:
    """Follow a run that another process supervises, until it ends. Ctrl-C stops watching, not the run."""
    chosen = settings.of(context)
    home, run = chosen.home(), chosen.run(run)
    seen, idle = listing.look(home, run), 0
    with render.progress(chosen, run) as bar:
        show = runs.watch(bar)
        while seen.row.state.open and idle < 20:  # a detached supervisor takes a moment to come up
            idle = 0 if seen.alive else idle + 1
            show(seen.step)
            time.sleep(0.5)
            seen = listing.look(home, run)
    render.result(chosen, "train.watch", runs.document(seen.row), runs.settled_lines(home, seen.row))


app.command()(partners.join)


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
    return engine_options(
        device, dtype, physical_tokens=physical_tokens, threads=threads, nproc=nproc, choice=run.engine, memory=memory
    )
