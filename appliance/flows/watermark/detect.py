"""`watermark detect`: look for the mark of a run in a suspect adapter or model.

proven commitment and mark -> watermark.started -> worker -> certificate -> watermark.detected
"""

from __future__ import annotations

from pathlib import Path

from appliance.errors import ApplianceError, ArtefactMissing, IntegrityError, PolicyDenied, UsageError
from appliance.events.watermark import WatermarkDetected, WatermarkRefused
from appliance.files import make_directory, write_atomic
from appliance.flows.desk import Desk
from appliance.flows.home import Home, Operator
from appliance.flows.key import require_unsealed
from appliance.flows.passing import passing_directory
from appliance.flows.watermark.markable import Markable, find_embedding, find_markable, find_trials
from appliance.flows.watermark.marking import common_fields, file_sha256, run_job
from appliance.jobs.rundir import RunDir
from appliance.jobs.watermark import DetectJob, DetectResult
from appliance.store.trees import tree_digest


def detect(home: Home, suspect: Path, run_id: str, key_id: str, operator: Operator) -> tuple[WatermarkDetected, Path]:
    """Look for the mark of a run in an adapter directory or a model directory. Not finding it is a result too.

    Args:
      home: the home.
      suspect: the directory; nothing in it is executed.
      run_id: the run whose mark is looked for.
      key_id: the key that is expected, or an empty string for the run's own.
      operator: who asks.

    Returns:
      The entry that says what was found, and the path of the certificate.

    Raises:
      UsageError: the ledger committed this run to another key: a mark found with it would prove nothing.
      IntegrityError: the reference is not the one the ledger committed to.
    """
    if not suspect.is_dir():
        raise ArtefactMissing("there is no such directory", where=str(suspect))
    with Desk.open(home, operator) as desk:
        with desk.refusals(WatermarkRefused, PolicyDenied, IntegrityError):
            markable = find_markable(desk.ledger, home, run_id)
        if key_id not in ("", markable.key.key_id):
            raise UsageError(f"the ledger committed run {run_id} to key {markable.key.key_id}", where="--key")
        done = find_embedding(desk.ledger, run_id)
        if done is None:
            raise ArtefactMissing(f"run {run_id} has no watermark", hint=f"appliance watermark embed {run_id}")
        require_unsealed(home)
        digest, _ = tree_digest(suspect)
        keys_tested = len(find_trials(desk.ledger, digest) | {(run_id, markable.key.key_id)})
        with passing_directory(home, "mark") as job_dir:
            job = _job(home, markable, suspect, done.escrow_sha256, keys_tested)
            result = run_job(desk, markable, job, job_dir, DetectResult)
            if result.suspect_sha256 != digest:
                raise IntegrityError("the suspect changed while it was examined", where=str(suspect))
            certificate = _keep_certificate(job_dir, home.run(run_id), result)
        detected = _state_detection(markable, result, keys_tested)
        desk.record(detected)
    return detected, certificate


def _job(home: Home, markable: Markable, suspect: Path, escrow_sha256: str, keys_tested: int) -> DetectJob:
    escrow = home.run(markable.run.id).escrow
    if not escrow.exists():
        hint = f"restore it from a backup, or make it again with `appliance watermark embed {markable.run.id}`"
        raise ArtefactMissing("the reference of this run is not here", hint=hint, where=str(escrow))
    return DetectJob(
        **common_fields(home, markable),
        suspect=str(suspect.resolve()),
        escrow=str(escrow),
        escrow_sha256=escrow_sha256,
        keys_tested=keys_tested,
    )


def _state_detection(markable: Markable, result: DetectResult, keys_tested: int) -> WatermarkDetected:
    return WatermarkDetected(
        run_id=markable.run.id,
        key_id=markable.key.key_id,
        suspect_sha256=result.suspect_sha256,
        suspect_kind=result.suspect_kind,
        score=result.score,
        p_bound=result.p_bound,
        detected=result.detected,
        keys_tested=keys_tested,
        certificate_sha256=result.certificate_sha256,
    )


def _keep_certificate(job_dir: RunDir, run_dir: RunDir, result: DetectResult) -> Path:
    if file_sha256(job_dir.certificate) != result.certificate_sha256:
        raise ApplianceError("the certificate is not the one the worker reported", where=str(job_dir.path))
    make_directory(run_dir.detections)
    target = run_dir.detections / f"{result.certificate_sha256}.json"
    write_atomic(target, job_dir.certificate.read_bytes())
    return target
