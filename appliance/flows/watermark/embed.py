"""`watermark embed`: mark the adapter of a finished run.

proven commitment -> watermark.started -> worker -> files -> watermark.embedded
"""

from __future__ import annotations

from appliance.errors import ApplianceError, ArtefactMissing, IntegrityError, PolicyDenied
from appliance.events.watermark import WatermarkEmbedded, WatermarkRefused
from appliance.files import commit, fsync_tree, write_atomic
from appliance.flows import launch
from appliance.flows.desk import Desk
from appliance.flows.home import Home, Operator
from appliance.flows.key import require_unsealed
from appliance.flows.passing import passing_directory
from appliance.flows.watermark.markable import Markable, find_embedding, find_markable
from appliance.flows.watermark.marking import common_fields, file_sha256, run_job
from appliance.jobs.rundir import RunDir
from appliance.jobs.watermark import EmbedJob, EmbedResult
from appliance.store.trees import tree_digest


def embed(home: Home, run_id: str, operator: Operator) -> WatermarkEmbedded:
    """Mark the adapter of a finished run; what may be released lies in `RUN/released` afterwards.

    A second call changes nothing: it makes the same files again if one is gone, and records nothing.

    Returns:
      The entry that says so.

    Raises:
      PolicyDenied: the run has not finished, or the ledger committed to no key before it was trained.
      IntegrityError: adapter, key, algorithm or ledger are not those of the commitment.
      GateFailed: the adapter is too small to carry a mark.
    """
    run_dir = home.run(run_id)
    with Desk.open(home, operator) as desk:
        with desk.refusals(WatermarkRefused, PolicyDenied, IntegrityError):
            markable = find_markable(desk.ledger, home, run_id)
        done = find_embedding(desk.ledger, run_id)
        if done is not None and _is_complete(run_dir, done):
            return done
        require_unsealed(home)
        with launch.supervising(run_dir), passing_directory(home, "mark") as job_dir:
            result = run_job(desk, markable, _job(home, markable), job_dir, EmbedResult)
            embedded = _state_mark(markable, result)
            _confirm(job_dir, embedded, markable, done)
            _keep(job_dir, run_dir)
            if done is None:
                desk.record(embedded)
        return embedded


def _job(home: Home, markable: Markable) -> EmbedJob:
    adapter = home.run(markable.run.id).adapter
    return EmbedJob(**common_fields(home, markable), adapter_dir=str(adapter), adapter_sha256=markable.adapter_sha256)


def _state_mark(markable: Markable, result: EmbedResult) -> WatermarkEmbedded:
    return WatermarkEmbedded(
        run_id=markable.run.id,
        key_id=markable.key.key_id,
        commitment=markable.key.commitment,
        model_sha256=markable.job.model_sha256,
        adapter_sha256=markable.adapter_sha256,
        released_sha256=result.released_sha256,
        escrow_sha256=result.escrow_sha256,
        algorithm_sha256=result.algorithm_sha256,
        certificate_sha256=result.certificate_sha256,
        strength=result.strength,
        modules=result.modules,
        score=result.score,
        score_predicted=dict(result.score_predicted),
        p_bound=result.p_bound,
        isolation=result.isolation.model_dump(),
        libraries=dict(result.libraries),
    )


def _confirm(job_dir: RunDir, made: WatermarkEmbedded, markable: Markable, done: WatermarkEmbedded | None) -> None:
    """Compare the files with what the worker says, and with what the ledger says if this was done before."""
    released, _ = tree_digest(job_dir.released)
    certificate = file_sha256(job_dir.certificate)
    if (released, certificate) != (made.released_sha256, made.certificate_sha256):
        raise ApplianceError("the marked adapter is not the one the worker reported", where=str(job_dir.path))
    if made.algorithm_sha256 != markable.algorithm_sha256:
        raise IntegrityError("the worker used another algorithm than the ledger committed to")
    again = (made.released_sha256, made.escrow_sha256)
    if done is not None and (done.released_sha256, done.escrow_sha256) != again:
        hint = "restore the files of the run from a backup: two different marked copies would weaken the mark"
        raise IntegrityError("the mark made again is not the one the ledger records", hint=hint)


def _keep(job_dir: RunDir, run_dir: RunDir) -> None:
    """Move what was made into the run's directory: escrow and certificate first, the released adapter last."""
    run_dir.clear(run_dir.released)
    write_atomic(run_dir.escrow, job_dir.escrow.read_bytes())
    write_atomic(run_dir.certificate, job_dir.certificate.read_bytes())
    fsync_tree(job_dir.released)
    commit(job_dir.released, run_dir.released)


def _is_complete(run_dir: RunDir, done: WatermarkEmbedded) -> bool:
    try:
        released, _ = tree_digest(run_dir.released)
        return (
            released == done.released_sha256
            and file_sha256(run_dir.certificate) == done.certificate_sha256
            and run_dir.escrow.exists()
        )
    except (ArtefactMissing, FileNotFoundError):
        return False
