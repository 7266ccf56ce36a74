"""Runs that can be marked, as the ledger proves it: key committed, then trained, then marked.

Whoever could choose key or reference after seeing the other could forge any score. Each leaf that is relied on here is
checked against a signed tree head, not only read.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

from appliance.errors import IntegrityError, PolicyDenied
from appliance.events.event import Event
from appliance.events.run import RunStarted
from appliance.events.states import KeyState, RunState
from appliance.events.watermark import WatermarkCommitted, WatermarkDetected, WatermarkEmbedded
from appliance.flows.catalog import find_run
from appliance.flows.home import Home
from appliance.jobs.train import TrainJob
from appliance.jobs.watermark import WatermarkKey
from appliance.ledger import proof
from appliance.ledger.reading import LedgerReader
from appliance.ledger.rows import RunRow, WatermarkKeyRow
from appliance.ledger.transaction import Reading, Transaction
from appliance.store.trees import tree_digest

E = TypeVar("E", bound=Event)


@dataclass(frozen=True, slots=True, kw_only=True)
class Markable:
    """What the ledger committed to before a run was trained, and what the training made.

    Attributes:
      run: the finished run.
      job: its training job, the one that was reserved.
      model_dir: where the base model lies now.
      key: the watermark key that was committed to.
      adapter_sha256: the unmarked adapter that the ledger records and that is here.
      algorithm_sha256: the algorithm that was committed to.
    """

    run: RunRow
    job: TrainJob
    model_dir: Path
    key: WatermarkKey
    adapter_sha256: str
    algorithm_sha256: str


def algorithm_sha256() -> str:
    """Digest the text that defines the watermark, as `sha256sum appliance/watermark/algorithm.txt` does."""
    return hashlib.sha256((files("appliance") / "watermark" / "algorithm.txt").read_bytes()).hexdigest()


def current_key(rows: Reading | Transaction) -> WatermarkKeyRow | None:
    """Find the watermark key that new runs are committed to, or None if there is none yet."""
    return next((row for row in rows.watermark_keys.list() if row.state == KeyState.CURRENT), None)


def state_commitment(run_id: str, key: WatermarkKeyRow, model_sha256: str) -> WatermarkCommitted:
    """Commit a run to a key, before it is trained."""
    return WatermarkCommitted(
        run_id=run_id,
        key_id=key.id,
        commitment=key.commitment,
        model_sha256=model_sha256,
        algorithm_sha256=algorithm_sha256(),
    )


def find_markable(ledger: LedgerReader, home: Home, run_id: str) -> Markable:
    """Prove that a run was committed to a key before it was trained, and find what a mark needs.

    Raises:
      ArtefactMissing: there is no such run.
      PolicyDenied: it has not finished, or was trained without a commitment.
      IntegrityError: adapter, job, key or algorithm are not those that the ledger names.
    """
    run = find_run(ledger, run_id)
    if run.state != RunState.FINISHED or run.adapter_sha256 is None:
        raise PolicyDenied(f"run {run_id} is {run.state}: only a finished run can be marked")
    commitment = _commitment(ledger, run_id)
    run_dir = home.run(run_id)
    job = run_dir.reserved_job(TrainJob, run.spec_sha256)
    if (job.model_sha256, algorithm_sha256()) != (commitment.model_sha256, commitment.algorithm_sha256):
        hint = "use the release of the appliance with which the run was reserved"
        raise IntegrityError("base model or algorithm are not those the ledger committed to", hint=hint)
    if tree_digest(run_dir.adapter)[0] != run.adapter_sha256:
        raise IntegrityError("the adapter is not the one the ledger records", where=str(run_dir.adapter))
    return Markable(
        run=run,
        job=job,
        model_dir=_model_dir(ledger, home, run, job),
        key=_key(ledger, commitment),
        adapter_sha256=run.adapter_sha256,
        algorithm_sha256=commitment.algorithm_sha256,
    )


def _commitment(ledger: LedgerReader, run_id: str) -> WatermarkCommitted:
    """Prove the run's one commitment, made before its first start."""
    indices = [entry.index for entry in ledger.entries(WatermarkCommitted, subject=run_id)]
    started = [entry.index for entry in ledger.entries(RunStarted, subject=run_id)]
    if len(indices) != 1 or not started or indices[0] > started[0]:
        hint = "make a key with `appliance watermark keygen`, then train anew: a key chosen afterwards proves nothing"
        raise PolicyDenied(f"the ledger committed to no watermark key before run {run_id} was trained", hint=hint)
    return prove(ledger, indices[0], WatermarkCommitted)


def find_embedding(ledger: LedgerReader, run_id: str) -> WatermarkEmbedded | None:
    """Prove that the run was marked, and how; None if it was not yet."""
    first = next(ledger.entries(WatermarkEmbedded, subject=run_id, limit=1), None)
    return None if first is None else prove(ledger, first.index, WatermarkEmbedded)


def find_trials(ledger: LedgerReader, suspect_sha256: str) -> set[tuple[str, str]]:
    """List the (run, key) pairs that were tried on a suspect before; each has signs of its own."""
    facts = (entry.leaf["facts"] for entry in ledger.entries(WatermarkDetected))
    return {(one["run_id"], one["key_id"]) for one in facts if one["suspect_sha256"] == suspect_sha256}


def prove(ledger: LedgerReader, index: int, kind: type[E]) -> E:
    """Read an entry that a signed tree head vouches for. Raises `IntegrityError` where it is of another kind."""
    leaf = proof.verify(ledger.prove(index), ledger.leaf(index), ledger.verifier_keys).leaf
    if leaf["type"] != kind.type:
        raise IntegrityError(f"entry {index} is not what its index says")
    return kind.of(leaf["facts"])


def _key(ledger: LedgerReader, commitment: WatermarkCommitted) -> WatermarkKey:
    with ledger.read() as rows:
        row = rows.watermark_keys.get(commitment.key_id)
    if row.commitment != commitment.commitment:
        raise IntegrityError(f"the watermark key {row.id} is not the one the ledger committed to")
    return WatermarkKey(key_id=row.id, commitment=row.commitment, wrapped_key=row.wrapped_key, key_epoch=row.key_epoch)


def _model_dir(ledger: LedgerReader, home: Home, run: RunRow, job: TrainJob) -> Path:
    """Find it by the catalog and not by the job, which names the place where the home was when the run was reserved."""
    with ledger.read() as rows:
        row = rows.models.get(run.model_id)
    if row.sha256 != job.model_sha256:
        raise IntegrityError(f"the base model of run {run.id} is not the one that was reserved")
    return home.model(row.sha256)
