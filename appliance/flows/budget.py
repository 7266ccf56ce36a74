"""What each dataset has spent of its lifetime budget, read from the runs in the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import orjson

from appliance.flows.home import Home
from appliance.flows.policy import active
from appliance.ledger.rows import DatasetRow, RunRow
from appliance.policy.policy import Policy
from appliance.privacy.accounting import Mechanism
from appliance.privacy.budget import Cap, Spend, lifetime_epsilon
from appliance.records import PrivacyPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The budget of one dataset: what the policy allows for its lifetime, and what runs have spent or reserved."""

    dataset: DatasetRow
    cap: Cap
    spent: float
    reserved: float
    runs: tuple[RunRow, ...]

    @property
    def left(self) -> float:
        """Epsilon below the cap; composition is not a sum, so a run of this epsilon may or may not fit."""
        return max(0.0, self.cap.epsilon - self.reserved)


def overlaps(dataset_id: str, datasets: Sequence[DatasetRow]) -> frozenset[str]:
    """Datasets that share a unit of privacy with this one, whichever of the two came first."""
    found = set()
    for row in datasets:
        older = orjson.loads(row.overlaps)
        if row.id == dataset_id:
            found.update(older)
        elif dataset_id in older:
            found.add(row.id)
    return frozenset(found)


def spend_of(run: RunRow) -> Spend:
    """What a run costs: the attempts it was charged, or its whole reservation while it is not settled."""
    plan = PrivacyPlan.model_validate_json(run.plan)
    if run.charged_attempts is None:
        return Spend.of_plan(run.id, run.dataset_id, plan)
    return Spend(
        run_id=run.id,
        dataset_id=run.dataset_id,
        mechanism=Mechanism(plan.noise_multiplier, plan.sample_rate, run.charged_attempts),
        epsilon_gap=float(run.epsilon_gap),
        sampler_delta=plan.sampler_delta,
    )


def cap_of(policy: Policy, dataset: DatasetRow) -> Cap:
    """The lifetime cap that the policy sets for a dataset's class; the strictest of all if the policy dropped it."""
    named = policy.classes.get(dataset.class_)
    rules = [named] if named else list(policy.classes.values())
    return Cap(epsilon=min(rule.max_epsilon for rule in rules), delta=min(rule.max_delta for rule in rules))


def accounts(home: Home) -> list[Account]:
    """`budget show`: the account of every dataset."""
    with home.ledger(writable=False) as ledger:
        _, policy = active(ledger)
        with ledger.read() as rows:
            datasets, runs = list(rows.datasets.list()), list(rows.runs.list())
    return [_account(dataset, datasets, runs, policy) for dataset in datasets]


def _account(dataset: DatasetRow, datasets: Sequence[DatasetRow], runs: Sequence[RunRow], policy: Policy) -> Account:
    group = {dataset.id} | overlaps(dataset.id, datasets)
    own = [run for run in runs if run.dataset_id in group]
    cap = cap_of(policy, dataset)
    settled = [spend_of(run) for run in own if run.charged_attempts is not None]
    return Account(
        dataset=dataset,
        cap=cap,
        spent=lifetime_epsilon(settled, cap.delta),
        reserved=lifetime_epsilon([spend_of(run) for run in own], cap.delta),
        runs=tuple(own),
    )


def sample_rate_text(rate: Fraction) -> str:
    """A sample rate as the ledger writes it: an exact fraction."""
    return f"{rate.numerator}/{rate.denominator}"
