"""`watermark`: keygen, embed, detect. Which key, which reference and which algorithm, the ledger said beforehand.

keygen -> watermark.keyed;   train start -> run.reserved + watermark.committed (reserve.py)
embed  -> watermark.started -> worker -> files -> watermark.embedded
detect -> watermark.started -> worker -> certificate -> watermark.detected
"""

from __future__ import annotations

import hashlib
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from appliance.errors import ApplianceError, ArtefactMissing, IntegrityError, PolicyDenied, UsageError
from appliance.events.states import KeyState
from appliance.events.watermark import (
    WatermarkDetected,
    WatermarkEmbedded,
    WatermarkKeyed,
    WatermarkRefused,
    WatermarkStarted,
)
from appliance.files import commit, fsync_tree, make_directory, write_atomic
from appliance.flows import launch
from appliance.flows.agent import evidence_for
from appliance.flows.home import Home, Operator, new_id
from appliance.flows.keys import require_unsealed
from appliance.flows.order import Order, embedded_in, order_of, tried_on
from appliance.flows.refusals import refusals_recorded
from appliance.jobs.rundir import RunDir
from appliance.jobs.watermark import DetectJob, DetectResult, EmbedJob, EmbedResult
from appliance.ledger.leaf import Actor
from appliance.ledger.ledger import Ledger
from appliance.ledger.rows import WatermarkKeyRow
from appliance.store.commitment import commit_to
from appliance.store.trees import tree_digest
from appliance.values import Value

R = TypeVar("R", bound=Value)


def keygen(home: Home, operator: Operator) -> WatermarkKeyRow:
    """Draw a watermark key and make it the current one; runs that were reserved before keep theirs.

    Raises:
      KeyUnavailable: the store is sealed.
    """
    require_unsealed(home)
    key_id = new_id("wmk")
    master, wrapped, epoch, _ = home.agent().ingest_keys(key_id)
    row = WatermarkKeyRow(
        id=key_id, commitment=commit_to(master), wrapped_key=wrapped, key_epoch=epoch, state=KeyState.CURRENT
    )
    with home.ledger() as ledger:
        with ledger.transaction(home.actor(operator), reason=operator.reason or None) as tx:
            for old in tx.watermark_keys.list():
                tx.watermark_keys.update(old.id, state=KeyState.RETIRED)
            tx.watermark_keys.add(row)
            tx.append(WatermarkKeyed(key_id=row.id, commitment=row.commitment, key_epoch=row.key_epoch))
        ledger.sign()
    return row


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
    with home.ledger() as ledger:
        actor = home.actor(operator)
        with refusals_recorded(ledger, actor, WatermarkRefused, PolicyDenied, IntegrityError):
            order = order_of(ledger, home, run_id)
        done = embedded_in(ledger, run_id)
        if done is not None and _is_complete(run_dir, done):
            return done
        require_unsealed(home)
        with launch.supervising(run_dir), _job_directory(home) as job_dir:
            result = _run(ledger, actor, order, _embed_job(home, order), job_dir, EmbedResult)
            embedded = _embedded(order, result)
            _confirm(job_dir, embedded, order, done)
            _keep(job_dir, run_dir)
            if done is None:
                with ledger.transaction(actor, reason=operator.reason or None) as tx:
                    tx.append(embedded)
                ledger.sign()
        return embedded


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
    with home.ledger() as ledger:
        actor = home.actor(operator)
        with refusals_recorded(ledger, actor, WatermarkRefused, PolicyDenied, IntegrityError):
            order = order_of(ledger, home, run_id)
        if key_id not in ("", order.key.key_id):
            raise UsageError(f"the ledger committed run {run_id} to key {order.key.key_id}", where="--key")
        done = embedded_in(ledger, run_id)
        if done is None:
            raise ArtefactMissing(f"run {run_id} has no watermark", hint=f"appliance watermark embed {run_id}")
        require_unsealed(home)
        digest, _ = tree_digest(suspect)
        keys_tested = len(tried_on(ledger, digest) | {(run_id, order.key.key_id)})
        with _job_directory(home) as job_dir:
            job = _detect_job(home, order, suspect, done.escrow_sha256, keys_tested)
            result = _run(ledger, actor, order, job, job_dir, DetectResult)
            if result.suspect_sha256 != digest:
                raise IntegrityError("the suspect changed while it was examined", where=str(suspect))
            certificate = _keep_certificate(job_dir, home.run(run_id), result)
        detected = _detected(order, result, keys_tested)
        with ledger.transaction(actor, reason=operator.reason or None) as tx:
            tx.append(detected)
        ledger.sign()
    return detected, certificate


@contextmanager
def _job_directory(home: Home) -> Iterator[RunDir]:
    made = home.run(new_id("mark"))
    made.path.mkdir(mode=0o700)
    try:
        yield made
    finally:
        shutil.rmtree(made.path, ignore_errors=True)


def _run(ledger: Ledger, actor: Actor, order: Order, job: EmbedJob | DetectJob, job_dir: RunDir, kind: type[R]) -> R:
    """Leave the evidence for the key agent in a signed leaf, then run the worker."""
    started = WatermarkStarted(
        run_id=order.run.id,
        key_id=job.key.key_id,
        nonce=secrets.token_hex(16),
        purpose="embed" if isinstance(job, EmbedJob) else "detect",
    )
    with ledger.transaction(actor) as tx:
        index = tx.append(started)
    ledger.sign()
    write_atomic(job_dir.evidence, evidence_for(ledger.prove(index), ledger.leaf(index)))
    job_dir.write_job(job)
    return launch.run_worker(job_dir, kind)


def _common(home: Home, order: Order) -> dict[str, Any]:
    """What both jobs share. Device, data type and threads are those of the run, so that a repetition agrees."""
    trained = order.job
    return {
        "run_id": order.run.id,
        "engine": trained.engine,
        "isolation": trained.isolation,
        "model_dir": str(order.model_dir),
        "model_sha256": trained.model_sha256,
        "key": order.key,
        "agent_socket": str(home.agent_socket),
    }


def _embed_job(home: Home, order: Order) -> EmbedJob:
    adapter = home.run(order.run.id).adapter
    return EmbedJob(**_common(home, order), adapter_dir=str(adapter), adapter_sha256=order.adapter_sha256)


def _detect_job(home: Home, order: Order, suspect: Path, escrow_sha256: str, keys_tested: int) -> DetectJob:
    escrow = home.run(order.run.id).escrow
    if not escrow.exists():
        hint = f"restore it from a backup, or make it again with `appliance watermark embed {order.run.id}`"
        raise ArtefactMissing("the reference of this run is not here", hint=hint, where=str(escrow))
    return DetectJob(
        **_common(home, order),
        suspect=str(suspect.resolve()),
        escrow=str(escrow),
        escrow_sha256=escrow_sha256,
        keys_tested=keys_tested,
    )


def _embedded(order: Order, result: EmbedResult) -> WatermarkEmbedded:
    return WatermarkEmbedded(
        run_id=order.run.id,
        key_id=order.key.key_id,
        commitment=order.key.commitment,
        model_sha256=order.job.model_sha256,
        adapter_sha256=order.adapter_sha256,
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


def _detected(order: Order, result: DetectResult, keys_tested: int) -> WatermarkDetected:
    return WatermarkDetected(
        run_id=order.run.id,
        key_id=order.key.key_id,
        suspect_sha256=result.suspect_sha256,
        suspect_kind=result.suspect_kind,
        score=result.score,
        p_bound=result.p_bound,
        detected=result.detected,
        keys_tested=keys_tested,
        certificate_sha256=result.certificate_sha256,
    )


def _confirm(job_dir: RunDir, made: WatermarkEmbedded, order: Order, done: WatermarkEmbedded | None) -> None:
    """The files must be what the worker says, and what the ledger says if this was done before."""
    released, _ = tree_digest(job_dir.released)
    certificate = _sha256(job_dir.certificate)
    if (released, certificate) != (made.released_sha256, made.certificate_sha256):
        raise ApplianceError("the marked adapter is not the one the worker reported", where=str(job_dir.path))
    if made.algorithm_sha256 != order.algorithm_sha256:
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


def _keep_certificate(job_dir: RunDir, run_dir: RunDir, result: DetectResult) -> Path:
    if _sha256(job_dir.certificate) != result.certificate_sha256:
        raise ApplianceError("the certificate is not the one the worker reported", where=str(job_dir.path))
    make_directory(run_dir.detections)
    target = run_dir.detections / f"{result.certificate_sha256}.json"
    write_atomic(target, job_dir.certificate.read_bytes())
    return target


def _is_complete(run_dir: RunDir, done: WatermarkEmbedded) -> bool:
    try:
        released, _ = tree_digest(run_dir.released)
        return (
            released == done.released_sha256
            and _sha256(run_dir.certificate) == done.certificate_sha256
            and run_dir.escrow.exists()
        )
    except (ArtefactMissing, FileNotFoundError):
        return False


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
