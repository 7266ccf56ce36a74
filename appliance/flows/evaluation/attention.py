"""`evaluate attention`: where a run's model looks on the operator's own prompt. Nothing is recorded.

There is no way to name a dataset here: a picture of a private record would be a release that nobody paid for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from appliance.errors import IntegrityError
from appliance.files import write_atomic
from appliance.flows import gpus, launch
from appliance.flows.home import Home
from appliance.flows.passing import passing_directory
from appliance.flows.subject import find_subject
from appliance.jobs import exchange
from appliance.jobs.attention import AttentionJob, AttentionResult, Heatmap
from appliance.report.heatmap import page

ORDERS = 119
"""Random orders of the deletion test: with so many p can be 1/120, which is below 0.01."""
MOST_TOKENS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """What is drawn: for which variant, and against how many random orders its faithfulness is tested."""

    variant: Literal["base", "adapter", "marked"] = "adapter"
    orders: int = ORDERS


def draw(home: Home, run_id: str, prompt: str, out: Path, drawing: Drawing) -> Heatmap:
    """Write a page about one prompt to `out`.

    Raises:
      ArtefactMissing: the run has no such adapter.
      DataInvalid: the prompt is too long to be drawn.
      UsageError: `out` exists already.
    """
    with home.reader() as ledger:
        found = find_subject(ledger, home, run_id)
    gpus.require(found.job.engine, processes=1)
    fields = found.variants()
    exact = fields["engine"].model_copy(update={"dtype": "float32"})  # in bfloat16 rows do not sum to 1
    job = AttentionJob(
        **{**fields, "engine": exact},
        isolation=found.job.isolation,
        variant=drawing.variant,
        most_tokens=MOST_TOKENS,
        orders=drawing.orders,
    )
    said: list[object] = []
    with passing_directory(home, "attention") as run_dir, exchange.opened() as pipes:
        run_dir.write_job(job)
        pipes.say(prompt)
        with launch.supervising(run_dir):
            launch.run_worker(run_dir, AttentionResult, watch=lambda: said.extend(pipes.said()), pipes=pipes)
    try:
        made = Heatmap.model_validate(said[0])
    except (ValidationError, IndexError):
        raise IntegrityError("the worker's result is not what it must be") from None
    write_atomic(out, page(made), replace=False)
    return made
