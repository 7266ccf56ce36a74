"""What may be served: what may leave, and only in a file or directory that the ledger ties to the run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import ArtefactMissing, PolicyDenied
from appliance.events.watermark import WatermarkDetected
from appliance.flows.catalog import find_run
from appliance.flows.home import Home
from appliance.flows.release.bundle import releasable
from appliance.flows.watermark.markable import prove
from appliance.jobs.job import IsolationSpec
from appliance.jobs.train import TrainJob
from appliance.ledger.reading import LedgerReader
from appliance.store.trees import tree_digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Servable:
    """A run whose model may be served.

    Attributes:
      run_id: the run.
      name: under which clients ask for it.
      policy_sha256: the policy under which it was trained.
      released_sha256: the marked adapter that the ledger records.
      isolation: what the run's job demanded of a process that computes; engines keep to it.
    """

    run_id: str
    name: str
    policy_sha256: str
    released_sha256: str
    isolation: IsolationSpec


def find_servable(ledger: LedgerReader, home: Home, run_id: str) -> Servable:
    """Find a run that may be served: finished, tested before, marked, and its marked adapter here.

    Raises:
      ArtefactMissing: there is no such run.
      PolicyDenied, GateFailed, IntegrityError: as for `export bundle`.
    """
    run, release = find_run(ledger, run_id), releasable(ledger, home, run_id)
    job = home.run(run_id).reserved_job(TrainJob, run.spec_sha256)
    return Servable(
        run_id=run_id,
        name=run.name,
        policy_sha256=release.policy_sha256,
        released_sha256=release.released_sha256,
        isolation=job.isolation,
    )


def digest(model: Path) -> str:
    """Digest a model: SHA-256 of a file, or the digest of a directory. Raises `ArtefactMissing`."""
    if model.is_dir():
        return tree_digest(model)[0]
    try:
        with model.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        raise ArtefactMissing("there is no such model", where=str(model)) from None


def find_voucher(ledger: LedgerReader, run_id: str, found: Mapping[str, str]) -> dict[str, int]:
    """Find the proven entries that say of models, path to digest, that they are of this run: its mark is in them.

    Returns:
      For each digest the index of its entry.

    Raises:
      PolicyDenied: there is none.
    """
    entries = [entry.index for entry in ledger.entries(WatermarkDetected, subject=run_id)]
    detections = [(index, prove(ledger, index, WatermarkDetected)) for index in entries]
    marked = {fact.suspect_sha256: index for index, fact in detections if fact.detected and fact.run_id == run_id}
    for model, sha256 in found.items():
        if sha256 not in marked:
            hint = f"`appliance watermark detect {model} --run {run_id}` says whether the run's mark is in it"
            raise PolicyDenied(f"no entry of the ledger says that this model is of run {run_id}", hint=hint)
    return {sha256: marked[sha256] for sha256 in found.values()}
