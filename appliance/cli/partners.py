"""Words about several machines: the options of `train start` and `train resume`, and `train join`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from appliance.cli import render, settings
from appliance.cli.settings import Settings
from appliance.flows import node
from appliance.flows.run.partners import Partners, choose_partners
from appliance.jobs.train import TrainJob

NnodesOption = Annotated[
    int, typer.Option(min=1, max=64, help="Machines that train together, this one included; see --node.")
]
RendezvousOption = Annotated[
    str, typer.Option(help="HOST:PORT where they meet: the address of this machine's WireGuard interface.")
]
NodeOption = Annotated[
    list[str] | None, typer.Option(help="Public key of another machine, or the file with it; once for each of them.")
]
TimeoutOption = Annotated[float, typer.Option(min=1, help="Seconds to wait until all ranks have come.")]


def choose(nnodes: int, rendezvous: str, node: list[str] | None, join_timeout: float) -> Partners | None:
    """Choose the other machines that the options name, or None."""
    return choose_partners(nnodes, rendezvous, node or [], join_timeout)


def tell(chosen: Settings) -> Callable[[list[Path], TrainJob], None]:
    """Say which file goes to which node, and what to run there."""

    def said(tickets: list[Path], job: TrainJob) -> None:
        for ticket in tickets:
            render.note(chosen, f"node {ticket.stem}: carry {ticket} there, and run")
            render.note(chosen, f"  appliance --home NODE train join {ticket.name} --object OBJECT --model MODEL")
        render.note(chosen, f"OBJECT, which is sealed, is {job.dataset.path}; MODEL is {job.model_dir}")

    return said


def join(
    context: typer.Context,
    ticket: Annotated[Path, typer.Argument(help="The ticket that the control node wrote for this node.")],
    object_: Annotated[
        Path | None, typer.Option("--object", help="The sealed object. Default: by its BLAKE3 in HOME/objects.")
    ] = None,
    model: Annotated[Path | None, typer.Option(help="The base model. Default: by its SHA-256 in HOME/models.")] = None,
    timeout: Annotated[
        float | None,
        typer.Option(min=1, help="Seconds to wait until all ranks have come. Default: as the ticket says."),
    ] = None,
) -> None:
    """On a node (`node init`): take part in the run that a ticket is for, until it ends. The result stays elsewhere."""
    here = settings.writing(context)
    done = node.join(here.root, ticket, object_, model, timeout)
    last = done.first + done.ranks - 1
    numbers = f"rank {last}" if done.ranks == 1 else f"ranks {done.first} to {last}"
    document = {"run": done.run_id, "first_rank": done.first, "ranks": done.ranks, "of": done.size}
    lines = [f"{done.run_id} is trained: {numbers} of {done.size} ran here; the result is on the control node"]
    render.result(here, "train.join", document, lines)
