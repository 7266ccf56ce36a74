"""What is judged: a finished run with its job, its base model and its adapters, as the ledger records them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.errors import IntegrityError, PolicyDenied
from appliance.events.states import RunState
from appliance.flows.catalog import find_run
from appliance.flows.home import Home
from appliance.flows.model.verify import check_files
from appliance.flows.watermark.markable import find_embedding
from appliance.jobs.train import TrainJob
from appliance.ledger.reading import LedgerReader
from appliance.ledger.rows import ModelRow, RunRow
from appliance.store.trees import tree_digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A finished run, found and checked.

    Attributes:
      home: where the files are.
      run: the finished run.
      job: its training job, the one that was reserved.
      model: its base model.
      adapter_sha256: the unmarked adapter.
      released_sha256: the marked adapter, or None before the watermark is embedded.
    """

    home: Home
    run: RunRow
    job: TrainJob
    model: ModelRow
    adapter_sha256: str
    released_sha256: str | None

    @property
    def names(self) -> tuple[str, ...]:
        """What is compared with the base, in order."""
        return ("adapter", "marked") if self.released_sha256 else ("adapter",)

    @property
    def model_dir(self) -> Path:
        """Directory of the base model."""
        return self.home.model(self.model.sha256)

    @property
    def adapter_dir(self) -> Path:
        """Directory of the unmarked adapter."""
        return self.home.run(self.run.id).adapter

    @property
    def released_dir(self) -> Path:
        """Directory of the marked adapter."""
        return self.home.run(self.run.id).released

    def check_files(self) -> None:
        """Compare model and adapters with the ledger, before anything is computed from the wrong ones.

        Raises:
          IntegrityError: naming what is not as recorded.
        """
        check_files(self.home, self.model)
        for directory, sha256 in ((self.adapter_dir, self.adapter_sha256), (self.released_dir, self.released_sha256)):
            if sha256 is not None and (not directory.is_dir() or tree_digest(directory)[0] != sha256):
                raise IntegrityError("the adapter is not the one the ledger records", where=str(directory))

    def variants(self) -> dict[str, Any]:
        """Give the fields of `jobs.variants.VariantsJob`, but for the isolation."""
        return {
            "run_id": self.run.id,
            "train": self.job.train,
            "engine": self.job.engine,
            "model_dir": str(self.model_dir),
            "model_sha256": self.job.model_sha256,
            "adapter_dir": str(self.adapter_dir),
            "adapter_sha256": self.adapter_sha256,
            "released_dir": str(self.released_dir) if self.released_sha256 else None,
            "released_sha256": self.released_sha256,
        }


def find_subject(ledger: LedgerReader, home: Home, run_id: str) -> Subject:
    """Find a finished run and what it made.

    Raises:
      ArtefactMissing: there is no such run.
      PolicyDenied: it has not finished.
      IntegrityError: its job or base model are not those that were reserved.
    """
    run = find_run(ledger, run_id)
    if run.state != RunState.FINISHED or run.adapter_sha256 is None:
        raise PolicyDenied(f"run {run.id} is {run.state}: only a finished run can be judged")
    with ledger.read() as rows:
        base = rows.models.get(run.model_id)
    embedded = find_embedding(ledger, run.id)
    return Subject(
        home=home,
        run=run,
        job=_training_job(home, run, base),
        model=base,
        adapter_sha256=run.adapter_sha256,
        released_sha256=None if embedded is None else embedded.released_sha256,
    )


def _training_job(home: Home, run: RunRow, base: ModelRow) -> TrainJob:
    """Read the job of the run as it was reserved: its template, its lengths, its engine."""
    run_dir = home.run(run.id)
    job = run_dir.reserved_job(TrainJob, run.spec_sha256)
    if base.sha256 != job.model_sha256:
        raise IntegrityError("the base model of the run is not the one that was reserved", where=str(run_dir.job))
    return job
