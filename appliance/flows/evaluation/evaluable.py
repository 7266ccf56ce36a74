"""What `evaluate run` needs before anything is reserved: a finished run, its adapters, and data held out from it."""

from __future__ import annotations

from dataclasses import dataclass, fields

from appliance.errors import PolicyDenied
from appliance.events.states import Purpose
from appliance.flows.budget import BudgetSnapshot, overlaps
from appliance.flows.catalog import choose_dataset, policy_in_force, require_active, unit_of
from appliance.flows.home import Home
from appliance.flows.subject import Subject, find_subject
from appliance.jobs.plan import UnitOfPrivacy
from appliance.ledger.reading import LedgerReader
from appliance.ledger.rows import DatasetRow, RunRow
from appliance.policy import check
from appliance.policy.policy import Policy
from appliance.privacy.evaluation import MOST_DELTA, EvaluationPlan, make_evaluation_plan
from appliance.privacy.lifetime import run_delta


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluable(Subject):
    """A run and a dataset that may be evaluated together, found and checked.

    Attributes:
      dataset: the held-out data.
      policy: the active policy.
      plan: the mechanism.
    """

    dataset: DatasetRow
    policy: Policy
    plan: EvaluationPlan

    @property
    def unit(self) -> UnitOfPrivacy:
        """The unit of privacy of the held-out data."""
        return unit_of(self.dataset)


def find_evaluable(ledger: LedgerReader, home: Home, run_id: str, dataset: str, epsilon: float) -> Evaluable:
    """Find what is named, and check that it may be evaluated.

    Raises:
      ArtefactMissing: the run or the dataset is not here.
      PolicyDenied: the run has not finished, the data are not held out from it or not for evaluation, or the policy
        does not allow the plan.
      IntegrityError: the run's job or base model are not those that were reserved.
    """
    subject = find_subject(ledger, home, run_id)
    policy = policy_in_force(ledger)
    with ledger.read() as rows:
        snapshot = BudgetSnapshot.read(rows)
    chosen = choose_dataset(snapshot.datasets, dataset)
    require_active(chosen)
    _check_held_out(subject.run, chosen, snapshot)
    plan = _plan(policy, chosen, comparisons=len(subject.names), epsilon=epsilon)
    found = {field.name: getattr(subject, field.name) for field in fields(Subject)}
    return Evaluable(**found, dataset=chosen, policy=policy, plan=plan)


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
