"""What `evaluate run` needs before anything is reserved: a finished run, its adapters, and data held out from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from appliance.errors import IntegrityError, PolicyDenied
from appliance.events.states import Purpose, RunState
from appliance.flows.budget import BudgetSnapshot, overlaps
from appliance.flows.catalog import choose_dataset, find_run, policy_in_force, require_active, unit_of
from appliance.flows.home import Home
from appliance.flows.model.verify import check_files
from appliance.flows.watermark.markable import find_embedding
from appliance.jobs.plan import UnitOfPrivacy
from appliance.jobs.train import TrainJob
from appliance.ledger.reading import LedgerReader
from appliance.ledger.rows import DatasetRow, ModelRow, RunRow
from appliance.policy import check
from appliance.policy.policy import Policy
from appliance.privacy.evaluation import MOST_DELTA, EvaluationPlan, make_evaluation_plan
from appliance.privacy.lifetime import run_delta
from appliance.store.trees import tree_digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluable:
    """A run and a dataset that may be evaluated together, found and checked.

    Attributes:
      home: where the files are.
      run: the finished run.
      job: its training job, the one that was reserved.
      model: its base model.
      dataset: the held-out data.
      policy: the active policy.
      plan: the mechanism.
      adapter_sha256: the unmarked adapter.
      released_sha256: the marked adapter, or None before the watermark is embedded.
    """

    home: Home
    run: RunRow
    job: TrainJob
    model: ModelRow
    dataset: DatasetRow
    policy: Policy
    plan: EvaluationPlan
    adapter_sha256: str
    released_sha256: str | None

    @property
    def names(self) -> tuple[str, ...]:
        """What is compared with the base, in order."""
        return ("adapter", "marked") if self.released_sha256 else ("adapter",)

    @property
    def unit(self) -> UnitOfPrivacy:
        """The unit of privacy of the held-out data."""
        return unit_of(self.dataset)

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
        """Compare model and adapters with the ledger, before an evaluation of the wrong ones is paid for.

        Raises:
          IntegrityError: naming what is not as recorded.
        """
        check_files(self.home, self.model)
        for directory, sha256 in ((self.adapter_dir, self.adapter_sha256), (self.released_dir, self.released_sha256)):
            if sha256 is not None and (not directory.is_dir() or tree_digest(directory)[0] != sha256):
                raise IntegrityError("the adapter is not the one the ledger records", where=str(directory))


def find_evaluable(ledger: LedgerReader, home: Home, run_id: str, dataset: str, epsilon: float) -> Evaluable:
    """Find what is named, and check that it may be evaluated.

    Raises:
      ArtefactMissing: the run or the dataset is not here.
      PolicyDenied: the run has not finished, the data are not held out from it or not for evaluation, or the policy
        does not allow the plan.
      IntegrityError: the run's job or base model are not those that were reserved.
    """
    run = find_run(ledger, run_id)
    if run.state != RunState.FINISHED or run.adapter_sha256 is None:
        raise PolicyDenied(f"run {run.id} is {run.state}: only a finished run can be evaluated")
    policy = policy_in_force(ledger)
    with ledger.read() as rows:
        snapshot, base = BudgetSnapshot.read(rows), rows.models.get(run.model_id)
    chosen = choose_dataset(snapshot.datasets, dataset)
    require_active(chosen)
    _check_held_out(run, chosen, snapshot)
    job = _training_job(home, run, base)
    embedded = find_embedding(ledger, run.id)
    released = None if embedded is None else embedded.released_sha256
    plan = _plan(policy, chosen, comparisons=1 if released is None else 2, epsilon=epsilon)
    return Evaluable(
        home=home,
        run=run,
        job=job,
        model=base,
        dataset=chosen,
        policy=policy,
        plan=plan,
        adapter_sha256=run.adapter_sha256,
        released_sha256=released,
    )


def _check_held_out(run: RunRow, dataset: DatasetRow, snapshot: BudgetSnapshot) -> None:
    if dataset.id == run.dataset_id:
        raise PolicyDenied(f"run {run.id} was trained on dataset {dataset.name}: it is not held out")
    if run.dataset_id in overlaps(dataset.id, snapshot.datasets):
        message = f"dataset {dataset.name} shares units of privacy with the one run {run.id} was trained on"
        raise PolicyDenied(f"{message}: it is not held out", hint="evaluate on data of other units")
    if dataset.purpose != Purpose.EVALUATION:
        hint = "ingest held-out data with --purpose evaluation, or divide at ingest with --held-out 10%"
        raise PolicyDenied(f"dataset {dataset.name} was ingested for {dataset.purpose}, not for evaluation", hint=hint)


def _plan(policy: Policy, dataset: DatasetRow, *, comparisons: int, epsilon: float) -> EvaluationPlan:
    units = dataset.declared_units
    rules = check.check_ingest(policy, dataset.class_, unit_of(dataset), units)
    delta = min(MOST_DELTA, run_delta(units, rules.max_delta))
    plan = make_evaluation_plan(declared_units=units, comparisons=comparisons, epsilon=epsilon, delta=delta)
    if plan.noise_multiplier < rules.min_noise_multiplier:
        message = f"noise multiplier {plan.noise_multiplier:.4g} is below {rules.min_noise_multiplier:g}"
        where = f"policy {policy.name}, class {dataset.class_}, rule min_noise_multiplier"
        raise PolicyDenied(f"{message} ({where})", hint="ask for a smaller epsilon")
    return plan


def _training_job(home: Home, run: RunRow, base: ModelRow) -> TrainJob:
    """Read the job of the run as it was reserved: its template, its lengths, its engine."""
    run_dir = home.run(run.id)
    job = run_dir.reserved_job(TrainJob, run.spec_sha256)
    if base.sha256 != job.model_sha256:
        raise IntegrityError("the base model of the run is not the one that was reserved", where=str(run_dir.job))
    return job
