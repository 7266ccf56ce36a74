"""`model merge`, `model quantize`: a run's model in one piece, bound to the run in the ledger.

    checks -> worker: merge, quantise, compare -> gate -> is the mark still in it? -> files -> model.converted

Only a marked adapter is merged, and what lost its mark on the way is not written out.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from appliance.errors import (
    ApplianceError,
    GateFailed,
    IntegrityError,
    PolicyDenied,
    UsageError,
)
from appliance.events.model import Compared, ConversionRefused, ModelConverted
from appliance.events.watermark import WatermarkDetected
from appliance.files import staged_directory
from appliance.flows import launch
from appliance.flows.catalog import find_run
from appliance.flows.desk import Desk
from appliance.flows.gates import find_gates
from appliance.flows.home import Home, Operator
from appliance.flows.key import require_unsealed
from appliance.flows.passing import passing_directory
from appliance.flows.subject import Subject, find_subject
from appliance.flows.watermark.detect import detect
from appliance.jobs.conversion import ConvertJob, ConvertResult, Format
from appliance.jobs.rundir import RunDir
from appliance.store.trees import tree_digest
from appliance.values import decimal

PREDICTIONS = 20_000
"""On public text, by which an artefact is compared with what it was made of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be made.

    Attributes:
      format: of the artefact.
      out: the directory to make.
      predictions: by which it is compared; 0 for none.
      max_loss: percentage points of accuracy that it may lose, counted at the bad end of the interval; None for any.
        The run's own gate holds beside it.
    """

    format: Format
    out: Path
    predictions: int = PREDICTIONS
    max_loss: float | None = None


def convert(home: Home, run_id: str, wanted: Wanted, operator: Operator) -> ModelConverted:
    """Write the model of a finished run to `wanted.out`.

    Raises:
      PolicyDenied: the run has not finished, or its adapter is not marked.
      GateFailed: it loses more than it may, or the mark is lost.
      IntegrityError: base or adapter are not those that the ledger records.
      UsageError: the directory exists already, or a gate has nothing to measure by.
      KeyUnavailable: the store is sealed: the mark could not be looked for.
    """
    if wanted.out.exists():
        raise UsageError("the directory exists already and is not replaced", where=str(wanted.out))
    _require_measured(wanted)
    require_unsealed(home)
    wanted = _gated(home, run_id, wanted)
    try:
        with passing_directory(home, "convert") as run_dir:
            found = _find(home, run_id)
            made = run_dir.path / "artefact"
            result = _work(run_dir, found, wanted, made)
            _require_little_loss(wanted, result)
            mark = _require_mark(home, run_id, made, operator)
            if mark.suspect_sha256 != result.artefact_sha256:
                raise IntegrityError("the artefact changed while it was examined")
            return _place(home, wanted, found, result, mark, made, operator)
    except (PolicyDenied, GateFailed, IntegrityError) as refusal:
        with Desk.open(home, operator) as desk, desk.refusals(ConversionRefused, type(refusal)):
            raise


def _gated(home: Home, run_id: str, wanted: Wanted) -> Wanted:
    """Take the gate of the run file where it has one for this format; what is asked for can only be stricter."""
    with home.reader() as ledger:
        own = find_gates(ledger, find_run(ledger, run_id).id).get(wanted.format.removeprefix("gguf-"))
    if own is None:
        return wanted
    gated = replace(wanted, max_loss=own if wanted.max_loss is None else min(own, wanted.max_loss))
    _require_measured(gated)
    return gated


def _require_measured(wanted: Wanted) -> None:
    if wanted.max_loss is not None and not wanted.predictions:
        raise UsageError("a gate needs predictions to measure by", where="--predictions")


def _find(home: Home, run_id: str) -> Subject:
    with home.reader() as ledger:
        found = find_subject(ledger, home, run_id)
    if found.released_sha256 is None:
        hint = f"mark it with `appliance watermark embed {run_id}`"
        raise PolicyDenied(f"the adapter of run {run_id} carries no watermark", hint=hint)
    return found


def _work(run_dir: RunDir, found: Subject, wanted: Wanted, made: Path) -> ConvertResult:
    job = ConvertJob(
        **found.variants(),
        isolation=found.job.isolation,
        format=wanted.format,
        name=found.run.name,
        licence=found.model.licence,
        output_dir=str(made),
        predictions=wanted.predictions,
    )
    run_dir.write_job(job)
    with launch.supervising(run_dir):
        result = launch.run_worker(run_dir, ConvertResult)
    if tree_digest(made)[0] != result.artefact_sha256:
        raise ApplianceError("the worker's digest of the artefact is wrong")
    return result


def _require_little_loss(wanted: Wanted, result: ConvertResult) -> None:
    if wanted.max_loss is None or result.comparison is None:
        return
    lost = -float(result.comparison.low)
    if lost > wanted.max_loss:
        reached = f"up to {lost:.3g} percentage points of accuracy may be lost (95 % interval)"
        hint = "more --predictions make the interval shorter; another format loses less"
        raise GateFailed(f"{reached}, where {wanted.max_loss:g} are allowed", hint=hint)


def _require_mark(home: Home, run_id: str, made: Path, operator: Operator) -> WatermarkDetected:
    detected, _ = detect(home, made, run_id, "", operator)
    if not detected.detected:
        hint = "another format keeps more of it; a larger rank carries more"
        raise GateFailed(f"the mark does not survive: its score is {detected.score}", hint=hint)
    return detected


def _place(
    home: Home,
    wanted: Wanted,
    found: Subject,
    result: ConvertResult,
    mark: WatermarkDetected,
    made: Path,
    operator: Operator,
) -> ModelConverted:
    """Copy the artefact to its place, then record it: one without an entry is nothing that the appliance made."""
    stated: dict[str, Any] = {}
    if result.comparison is not None:
        stated["comparison"] = Compared(**result.comparison.model_dump())
    if wanted.max_loss is not None:
        stated["max_loss"] = decimal(wanted.max_loss)
    event = ModelConverted(
        run_id=found.run.id,
        format=wanted.format,
        artefact_sha256=result.artefact_sha256,
        model_sha256=found.model.sha256,
        released_sha256=str(found.released_sha256),
        bytes=result.bytes,
        bytes_bfloat16=result.bytes_bfloat16,
        base_four_bit=result.base_four_bit,
        watermark_score=mark.score,
        **stated,
        isolation=result.isolation.model_dump(),
        libraries=dict(result.libraries),
    )
    with staged_directory(wanted.out) as target:
        for path in sorted(made.iterdir()):
            shutil.copyfile(path, target / path.name)
        if tree_digest(target)[0] != result.artefact_sha256:
            raise IntegrityError("the artefact changed while it was copied", where=str(wanted.out))
    with Desk.open(home, operator) as desk:
        desk.record(event, found.run.policy_sha256)
    return event
