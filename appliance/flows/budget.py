"""What each dataset has spent of its lifetime budget, read from the runs and evaluations in the ledger."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fractions import Fraction

import orjson

from appliance.events.states import EvaluationState
from appliance.flows import catalog
from appliance.flows.home import Home
from appliance.ledger.reading import LedgerReader
from appliance.ledger.rows import DatasetRow, EvaluationRow, RunRow
from appliance.ledger.transaction import Reading, Transaction
from appliance.policy.policy import Policy
from appliance.privacy.accounting import Mechanism, composition
from appliance.privacy.budget import Cap, Spend, check_budget, lifetime_epsilon


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The budget of one dataset: what the policy allows for its lifetime, and what was spent or reserved of it."""

    dataset: DatasetRow
    cap: Cap
    spent: float
    reserved: float
    runs: tuple[RunRow, ...]
    evaluations: tuple[EvaluationRow, ...]

    @property
    def left(self) -> float:
        """Epsilon below the cap; composition is not a sum, so a run of this epsilon may or may not fit."""
        return max(0.0, self.cap.epsilon - self.reserved)


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetSnapshot:
    """Everything that a budget is computed from, at one moment; equal snapshots give equal budgets."""

    datasets: tuple[DatasetRow, ...]
    runs: tuple[RunRow, ...]
    evaluations: tuple[EvaluationRow, ...]

    @staticmethod
    def read(rows: Reading | Transaction) -> BudgetSnapshot:
        """Read it in a reading or a transaction."""
        return BudgetSnapshot(
            datasets=tuple(rows.datasets.list()),
            runs=tuple(rows.runs.list()),
            evaluations=tuple(rows.evaluations.list()),
        )

    def spends(self, group: Collection[str] | None = None) -> list[Spend]:
        """List what every run and evaluation costs, or those on the datasets of `group`."""
        found = [*map(spend_of, self.runs), *map(spend_of_evaluation, self.evaluations)]
        return [spend for spend in found if group is None or spend.dataset_id in group]


def overlaps(dataset_id: str, datasets: Sequence[DatasetRow]) -> frozenset[str]:
    """Find the datasets that share a unit of privacy with this one, whichever of the two came first."""
    found = set()
    for row in datasets:
        older = orjson.loads(row.overlaps)
        if row.id == dataset_id:
            found.update(older)
        elif dataset_id in older:
            found.add(row.id)
    return frozenset(found)


def spend_of(run: RunRow) -> Spend:
    """Say what a run costs: the attempts it was charged, or its whole reservation while it is not settled."""
    plan = catalog.plan_of(run)
    if run.charged_attempts is None:
        return Spend.of_plan(run.id, run.dataset_id, plan)
    return Spend(
        run_id=run.id,
        dataset_id=run.dataset_id,
        mechanisms=tuple(composition(plan, run.charged_attempts)),
        epsilon_gap=float(run.epsilon_gap),
        sampler_delta=plan.sampler_delta,
    )


def spend_of_evaluation(row: EvaluationRow) -> Spend:
    """Say what an evaluation costs: all of it, from its reservation on, whatever became of it."""
    return Spend(
        run_id=row.id,
        dataset_id=row.dataset_id,
        mechanisms=(Mechanism(float(row.noise_multiplier), Fraction(1), 1),),
        sampler_delta=float(row.sampler_delta),
    )


def afford(ledger: LedgerReader, policy: Policy, asked: Spend) -> tuple[BudgetSnapshot, float, float]:
    """Check the lifetime budget of every dataset that a run or an evaluation would spend from.

    Returns:
      The snapshot the check was made against, and the dataset's lifetime epsilon before and after what is asked.

    Raises:
      BudgetExceeded: some dataset's lifetime cap would be exceeded.
    """
    with ledger.read() as rows:
        snapshot = BudgetSnapshot.read(rows)
    before, after = weigh(snapshot, policy, asked)
    return snapshot, before, after


def weigh(snapshot: BudgetSnapshot, policy: Policy, asked: Spend) -> tuple[float, float]:
    """Check as `afford` does, at one moment: by a policy, and with the rows that there were.

    `ledger verify` works out by it again what a reservation states.
    """
    shared = {row.id: overlaps(row.id, snapshot.datasets) for row in snapshot.datasets}
    caps = {row.id: cap_of(policy, row) for row in snapshot.datasets}
    return check_budget(asked, spends=snapshot.spends(), overlaps=shared, caps=caps)


def cap_of(policy: Policy, dataset: DatasetRow) -> Cap:
    """Find the lifetime cap of a dataset's class; the strictest of all if the policy dropped the class."""
    named = policy.classes.get(dataset.class_)
    rules = [named] if named else list(policy.classes.values())
    return Cap(epsilon=min(rule.max_epsilon for rule in rules), delta=min(rule.max_delta for rule in rules))


def accounts(home: Home) -> list[Account]:
    """Give `budget show` the account of every dataset."""
    with home.reader() as ledger:
        policy = catalog.policy_in_force(ledger)
        with ledger.read() as rows:
            snapshot = BudgetSnapshot.read(rows)
    return [_account(dataset, snapshot, policy) for dataset in snapshot.datasets]


def _account(dataset: DatasetRow, snapshot: BudgetSnapshot, policy: Policy) -> Account:
    group = {dataset.id} | overlaps(dataset.id, snapshot.datasets)
    runs = tuple(run for run in snapshot.runs if run.dataset_id in group)
    evaluations = tuple(row for row in snapshot.evaluations if row.dataset_id in group)
    settled = [spend_of(run) for run in runs if run.charged_attempts is not None]
    settled += [spend_of_evaluation(row) for row in evaluations if row.state != EvaluationState.RESERVED]
    cap = cap_of(policy, dataset)
    return Account(
        dataset=dataset,
        cap=cap,
        spent=lifetime_epsilon(settled, cap.delta),
        reserved=lifetime_epsilon(snapshot.spends(group), cap.delta),
        runs=runs,
        evaluations=evaluations,
    )


def sample_rate_text(rate: Fraction) -> str:
    """Write a sample rate as the ledger writes it: an exact fraction."""
    return f"{rate.numerator}/{rate.denominator}"
