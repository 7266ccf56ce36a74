"""What each dataset has spent of its lifetime budget, read from the runs and evaluations in the ledger."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import orjson

from appliance.events.data import DataSealed
from appliance.events.states import EvaluationState
from appliance.flows import catalog, timeline
from appliance.flows.home import Home
from appliance.flows.timeline import Places, Timeline
from appliance.jobs.plan import UnitOfPrivacy
from appliance.ledger.reading import LedgerReader
from appliance.ledger.rows import DatasetRow, EvaluationRow, PolicyRow, RunRow
from appliance.ledger.transaction import Reading, Transaction
from appliance.policy.policy import Policy, parse
from appliance.privacy.accounting import Mechanism, composition
from appliance.privacy.budget import check_budget
from appliance.privacy.filter import best_order
from appliance.privacy.lifetime import Cap, Spend, Spent, lifetime, sampler_distance
from appliance.values import decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The budget of one dataset: what the policy allows for its lifetime, and what was spent or reserved of it."""

    dataset: DatasetRow
    cap: Cap
    spent: Spent
    reserved: Spent
    runs: tuple[RunRow, ...]
    evaluations: tuple[EvaluationRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetSnapshot:
    """Everything that a budget is computed from, at one moment; equal snapshots give equal budgets.

    What the ledger tells of the order of things changes only together with a row, so it need not be compared.
    """

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

    def spends(self, timeline: Timeline) -> list[Spend]:
        """List what every run and evaluation costs."""
        units = {row.id: catalog.unit_of(row) for row in self.datasets}
        runs = [spend_of(run, timeline.of(run.id)) for run in self.runs]
        return runs + [spend_of_evaluation(row, units[row.dataset_id], timeline.of(row.id)) for row in self.evaluations]


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """What the ledger tells besides the rows.

    Attributes:
      timeline: what came after what.
      sealed: for each dataset the leaf that says that it was sealed.
      policies: every policy that was ever in force, by its digest.
    """

    timeline: Timeline
    sealed: Mapping[str, Mapping[str, Any]]
    policies: Mapping[str, PolicyRow]

    @staticmethod
    def read(ledger: LedgerReader) -> Past:
        """Read it from the ledger as it is."""
        leaves = list(ledger.leaves(DataSealed, *timeline.KINDS))
        with ledger.read() as rows:
            policies = rows.policies.list()
        return Past.of_leaves(leaves, policies)

    @staticmethod
    def of_leaves(leaves: Sequence[Mapping[str, Any]], policies: Iterable[PolicyRow]) -> Past:
        """Read it from these entries, in their order."""
        sealed = [leaf for leaf in leaves if leaf["type"] == DataSealed.type]
        return Past(
            timeline=Timeline.of_leaves(leaf for leaf in leaves if leaf["type"] != DataSealed.type),
            sealed={leaf["facts"]["dataset_id"]: leaf for leaf in sealed},
            policies={row.sha256: row for row in policies},
        )

    def caps(self, policy: Policy, datasets: Sequence[DatasetRow]) -> dict[str, Cap]:
        """Find the lifetime cap of every dataset under a policy, with the order of its filter."""
        return {row.id: cap_of(policy, row, self._order(policy, row)) for row in datasets}

    def _order(self, policy: Policy, dataset: DatasetRow) -> float:
        """Find the order that was fixed when the dataset was sealed.

        Releases before there was a filter did not state it; then it is what this one would have stated, under the
        policy that was in force.
        """
        leaf = self.sealed.get(dataset.id)
        if leaf is not None and "filter_order" in leaf["facts"]:
            return float(leaf["facts"]["filter_order"])
        then = self.policies.get(leaf["policy_sha256"]) if leaf is not None and leaf["policy_sha256"] else None
        in_force = parse(then.text.encode(), f"policy {then.name}") if then else policy
        return best_order(*catalog.limits(in_force, dataset.class_, dataset.declared_units))


@dataclass(frozen=True, slots=True, kw_only=True)
class Afforded:
    """What a check of the budget found.

    Attributes:
      snapshot: what it was made against.
      before: what was spent from the dataset.
      after: and what with what is asked.
      cap: of the dataset.
    """

    snapshot: BudgetSnapshot
    before: Spent
    after: Spent
    cap: Cap

    def facts(self) -> dict[str, Any]:
        """State it as the entry of a reservation does."""
        return {
            "epsilon_before": decimal(round(self.before.epsilon, 9)),
            "epsilon_after": decimal(round(self.after.epsilon, 9)),
            "cap": decimal(self.cap.epsilon),
            "lifetime_delta": decimal(self.cap.delta),
            "filter_order": decimal(self.cap.order),
            "counted_by": self.after.rule,
        }


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


def spend_of(run: RunRow, places: Places) -> Spend:
    """Say what a run costs: the attempts it was charged, or its whole reservation while it is not settled."""
    plan = catalog.plan_of(run)
    asked = Spend.of_plan(run.id, run.dataset_id, plan)
    charged = asked.mechanisms, asked.epsilon_gap
    if run.charged_attempts is not None:
        charged = tuple(composition(plan, run.charged_attempts)), float(run.epsilon_gap)
    return Spend(
        run_id=run.id,
        dataset_id=run.dataset_id,
        unit=plan.unit,
        mechanisms=charged[0],
        reserved=asked.reserved,
        epsilon_gap=charged[1],
        sampler_distance=asked.sampler_distance,
        **places.as_arguments(),
    )


def spend_of_evaluation(row: EvaluationRow, unit: UnitOfPrivacy, places: Places | None = None) -> Spend:
    """Say what an evaluation costs: all of it, from its reservation on, whatever became of it.

    Args:
      row: the evaluation.
      unit: of its dataset.
      places: where the ledger tells of it; None for one that is only asked for.
    """
    mechanism = (Mechanism(float(row.noise_multiplier), Fraction(1), 1),)
    return Spend(
        run_id=row.id,
        dataset_id=row.dataset_id,
        unit=unit,
        mechanisms=mechanism,
        reserved=mechanism,
        sampler_distance=sampler_distance(float(row.sampler_delta), float(row.epsilon)),
        **(places.as_arguments() if places else {}),
    )


def afford(ledger: LedgerReader, policy: Policy, asked: Spend) -> Afforded:
    """Check the lifetime budget of every dataset that a run or an evaluation would spend from.

    Raises:
      BudgetExceeded: some dataset's lifetime cap would be exceeded.
    """
    with ledger.read() as rows:
        snapshot = BudgetSnapshot.read(rows)
    return weigh(snapshot, Past.read(ledger), policy, asked)


def weigh(snapshot: BudgetSnapshot, past: Past, policy: Policy, asked: Spend) -> Afforded:
    """Check as `afford` does, at one moment: by a policy, with the rows that there were and what the ledger told.

    `ledger verify` works out by it again what a reservation states.
    """
    caps = past.caps(policy, snapshot.datasets)
    before, after = check_budget(
        asked,
        spends=snapshot.spends(past.timeline),
        overlaps={row.id: overlaps(row.id, snapshot.datasets) for row in snapshot.datasets},
        caps=caps,
    )
    return Afforded(snapshot=snapshot, before=before, after=after, cap=caps[asked.dataset_id])


def caps_of(ledger: LedgerReader, policy: Policy, datasets: Sequence[DatasetRow]) -> dict[str, Cap]:
    """Find the lifetime cap of every dataset under a policy, with the order of its filter."""
    return Past.read(ledger).caps(policy, datasets)


def cap_of(policy: Policy, dataset: DatasetRow, order: float) -> Cap:
    """Find the lifetime cap of a dataset's class; the strictest of all if the policy dropped the class."""
    epsilon, delta = catalog.limits(policy, dataset.class_, dataset.declared_units)
    return Cap(epsilon=epsilon, delta=delta, order=order, unit=catalog.unit_of(dataset))


def accounts(home: Home) -> list[Account]:
    """Give `budget show` the account of every dataset."""
    with home.reader() as ledger:
        policy = catalog.policy_in_force(ledger)
        with ledger.read() as rows:
            snapshot = BudgetSnapshot.read(rows)
        caps = caps_of(ledger, policy, snapshot.datasets)
        spends = snapshot.spends(Timeline.read(ledger))
    return [_account(dataset, snapshot, spends, caps[dataset.id]) for dataset in snapshot.datasets]


def _account(dataset: DatasetRow, snapshot: BudgetSnapshot, spends: Collection[Spend], cap: Cap) -> Account:
    group = {dataset.id} | overlaps(dataset.id, snapshot.datasets)
    runs = tuple(run for run in snapshot.runs if run.dataset_id in group)
    evaluations = tuple(row for row in snapshot.evaluations if row.dataset_id in group)
    settled = {run.id for run in runs if run.charged_attempts is not None}
    settled |= {row.id for row in evaluations if row.state != EvaluationState.RESERVED}
    own = [spend for spend in spends if spend.dataset_id in group]
    return Account(
        dataset=dataset,
        cap=cap,
        spent=lifetime([spend for spend in own if spend.run_id in settled], cap),
        reserved=lifetime(own, cap),
        runs=runs,
        evaluations=evaluations,
    )


def sample_rate_text(rate: Fraction) -> str:
    """Write a sample rate as the ledger writes it: an exact fraction."""
    return f"{rate.numerator}/{rate.denominator}"
