"""What may be served: what may leave, and only in a file or directory that the ledger ties to the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import ArtefactMissing, PolicyDenied
from appliance.events.model import ModelConverted
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
    """Digest a model's directory, as the ledger does. Raises `ArtefactMissing`."""
    if not model.is_dir():
        hint = "name the directory that `appliance model merge` or `appliance model quantize` made"
        raise ArtefactMissing("there is no such directory", hint=hint, where=str(model))
    return tree_digest(model)[0]


def weights(model: Path) -> Path:
    """Find what llama.cpp loads of a directory: its one GGUF file. Raises `ArtefactMissing`."""
    found = sorted(model.glob("*.gguf"))
    if len(found) != 1:
        hint = "`appliance model quantize RUN --to q8_0` makes one"
        raise ArtefactMissing(f"llama.cpp needs one GGUF file, and {len(found)} are here", hint=hint, where=str(model))
    return found[0]


def find_vouchers(ledger: LedgerReader, servable: Servable, found: Mapping[str, str]) -> dict[str, int]:
    """Find the proven entries that say of models, path to digest, that they are of this run.

    Either the appliance made it of the marked adapter, or the run's mark was found in it.

    Returns:
      For each digest the index of its entry.

    Raises:
      PolicyDenied: there is none.
    """
    run_id = servable.run_id
    made = {e.index: prove(ledger, e.index, ModelConverted) for e in ledger.entries(ModelConverted, subject=run_id)}
    seen = {
        e.index: prove(ledger, e.index, WatermarkDetected) for e in ledger.entries(WatermarkDetected, subject=run_id)
    }
    known = {fact.suspect_sha256: index for index, fact in seen.items() if fact.detected}
    known |= {
        fact.artefact_sha256: index for index, fact in made.items() if fact.released_sha256 == servable.released_sha256
    }
    for model, sha256 in found.items():
        if sha256 not in known:
            hint = f"make it with `appliance model merge` or `quantize`, or `appliance watermark detect {model}`"
            raise PolicyDenied(f"no entry of the ledger says that this model is of run {run_id}", hint=hint)
    return {sha256: known[sha256] for sha256 in found.values()}
