"""Work out every reservation again, as a reader of the ledger can: before, after, cap, and by which policy.

The log is gone through in order. At each reservation the datasets, runs and evaluations are put together as they were
then, and the function decides that decided then. Nothing that a row says today of what was charged is believed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from appliance.errors import ApplianceError
from appliance.events.budget import BudgetStated
from appliance.events.data import DataRetired, DataSealed
from appliance.events.evaluation import EvaluationReserved
from appliance.events.policy import PolicyActivated
from appliance.events.release import BundleExported
from appliance.events.run import RunReserved, RunStarted
from appliance.events.states import CatalogState, RunState
from appliance.flows import budget, catalog, standing, timeline
from appliance.flows.budget import BudgetSnapshot, Past
from appliance.flows.former import weigh_formerly
from appliance.flows.run.reserve import state_plan
from appliance.ledger.reading import LedgerReader
from appliance.ledger.rows import DatasetRow, EvaluationRow, PolicyRow, RunRow
from appliance.ledger.transaction import Reading
from appliance.policy.policy import Policy, parse
from appliance.privacy.lifetime import Spend
from appliance.values import decimal

_NO_SPEND = (PolicyActivated.type, DataRetired.type, BundleExported.type, BudgetStated.type)
_ROUNDING = 2e-4  # epsilon is rounded up to a multiple of 1e-4; another machine may round the last digit otherwise


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong with an entry, in words."""

    index: int
    problem: str


def recount(ledger: LedgerReader) -> list[Finding]:
    """Work out every reservation again in a ledger that was verified: each row is what its newest entry says."""
    leaves = list(
        ledger.leaves(DataSealed, DataRetired, PolicyActivated, BundleExported, BudgetStated, *timeline.KINDS)
    )
    with ledger.read() as rows:
        history = _History.of(rows)
    return [Finding(leaf["index"], f"entry {leaf['index']} {said}") for leaf in leaves for said in history.take(leaf)]


@dataclass(slots=True)
class _History:
    """What there was at a point of the log.

    Attributes:
      rows: the rows there are today, of which only what never changes is used: plans, overlaps, texts.
      in_force: digest of the policy in force.
      datasets, runs, evaluations: those there were, as they were.
      exported: the entries of bundles.
      retired: ids of the datasets that no new work could use any more.
      leaves: the entries there were.
    """

    rows: _Today
    in_force: str = ""
    datasets: dict[str, DatasetRow] = field(default_factory=dict)
    runs: dict[str, RunRow] = field(default_factory=dict)
    evaluations: dict[str, EvaluationRow] = field(default_factory=dict)
    exported: list[Mapping[str, Any]] = field(default_factory=list)
    retired: set[str] = field(default_factory=set)
    leaves: list[Mapping[str, Any]] = field(default_factory=list)

    @staticmethod
    def of(rows: Reading) -> _History:
        """Begin with nothing, before the first entry."""
        return _History(
            _Today(
                {row.id: row for row in rows.datasets.list()},
                {row.id: row for row in rows.runs.list()},
                {row.id: row for row in rows.evaluations.list()},
                {row.sha256: row for row in rows.policies.list()},
            )
        )

    def take(self, leaf: Mapping[str, Any]) -> Iterator[str]:
        """Take the next entry; say what is wrong with it."""
        take: dict[str, Callable[[Mapping[str, Any]], Iterator[str]]] = {
            DataSealed.type: self._seal,
            DataRetired.type: self._retire,
            PolicyActivated.type: self._activate,
            RunReserved.type: self._reserve_run,
            EvaluationReserved.type: self._reserve_evaluation,
            BundleExported.type: self._export,
            BudgetStated.type: self._state,
            RunStarted.type: lambda _: iter(()),
        }
        try:
            yield from take.get(leaf["type"], self._end)(leaf)
            if leaf["type"] not in _NO_SPEND:
                self.leaves.append(leaf)
        except KeyError:
            yield "is about what there is no row of"

    def _seal(self, leaf: Mapping[str, Any]) -> Iterator[str]:
        row = self.rows.datasets[leaf["facts"]["dataset_id"]]
        self.datasets[row.id] = row
        yield from ()

    def _retire(self, leaf: Mapping[str, Any]) -> Iterator[str]:
        row = self.datasets[leaf["facts"]["dataset_id"]]
        self.retired.add(row.id)
        if row.state != CatalogState.RETIRED:
            yield "retires a dataset that its row says may be used"

    def _activate(self, leaf: Mapping[str, Any]) -> Iterator[str]:
        self.in_force = leaf["facts"]["sha256"]
        yield from ()

    def _reserve_run(self, leaf: Mapping[str, Any]) -> Iterator[str]:
        facts = leaf["facts"]
        today = self.rows.runs[facts["run_id"]]
        plan = catalog.plan_of(today)
        stated = state_plan(plan).model_dump(mode="json", by_alias=True, exclude_unset=True)
        if any(stated.get(name) != value for name, value in facts["plan"].items()):
            yield "states another plan than its run has"
        yield from self._weigh(leaf, Spend.of_plan(today.id, facts["dataset_id"], plan), plan.sampler_delta)
        fresh = dataclasses.replace(today, state=RunState.RESERVED, charged_attempts=None, epsilon_gap="0")
        self.runs[today.id] = fresh

    def _reserve_evaluation(self, leaf: Mapping[str, Any]) -> Iterator[str]:
        row = self.rows.evaluations[leaf["facts"]["evaluation_id"]]
        unit = catalog.unit_of(self.datasets[row.dataset_id])
        yield from self._weigh(leaf, budget.spend_of_evaluation(row, unit), float(row.sampler_delta))
        self.evaluations[row.id] = row

    def _end(self, leaf: Mapping[str, Any]) -> Iterator[str]:
        facts = leaf["facts"]
        gap = max(0.0, float(facts["epsilon_prv"]) - float(facts["epsilon_pld"]))
        ended = dataclasses.replace(
            self.runs[facts["run_id"]], charged_attempts=facts["attempts"], epsilon_gap=decimal(gap)
        )
        self.runs[ended.id] = ended
        today = self.rows.runs[ended.id]
        if (today.charged_attempts, float(today.epsilon_gap)) != (ended.charged_attempts, gap):
            yield "charges something else than the run's row says"

    def _export(self, leaf: Mapping[str, Any]) -> Iterator[str]:
        self.exported.append(leaf)
        yield from ()

    def _state(self, leaf: Mapping[str, Any]) -> Iterator[str]:
        facts, policy = leaf["facts"], self._policy(self.in_force)
        past = Past.of_leaves(self.leaves, self.rows.policies.values())
        right = standing.standing(self._snapshot(), past, policy, facts["dataset_id"])
        exported = list(standing.ledger_exports(self.exported, facts["run_id"]))
        right["exports"] = exported[: len(facts["exports"])]  # another may have been written while it was stated
        for name in sorted({*right, *facts} - {"run_id"}):
            stated, value = facts.get(name), right.get(name)
            if stated != value and (stated is None or value is None or not _same(name, str(stated), str(value))):
                yield f"states {name} {stated} where it was {value}"

    def _weigh(self, leaf: Mapping[str, Any], asked: Spend, sampler_delta: float) -> Iterator[str]:
        """Decide again whether it could be afforded, by the policy that was in force."""
        facts, policy = leaf["facts"], self._policy(self.in_force)
        if leaf["policy_sha256"] != self.in_force:
            yield "reserves under a policy that was not in force"
        if asked.dataset_id in self.retired:
            yield "reserves on a dataset that was retired"
        if "filter_order" not in facts and any("filter_order" in earlier["facts"] for earlier in self.leaves):
            yield "states no order of the filter, though an earlier entry does"
        try:
            if "counted_by" in facts:
                past = Past.of_leaves(self.leaves, self.rows.policies.values())
                right = budget.weigh(self._snapshot(), past, policy, asked).facts()
            else:
                right = weigh_formerly(self._snapshot(), policy, asked, sampler_delta)
        except ApplianceError as error:
            yield f"reserves what could not be afforded: {error.message}"
            return
        for name, value in right.items():
            if not _same(name, facts[name], value):
                yield f"states {name} {facts[name]} where it was {value}"

    def _policy(self, sha256: str) -> Policy:
        row = self.rows.policies[sha256]
        return parse(row.text.encode(), f"policy {row.name}")

    def _snapshot(self) -> BudgetSnapshot:
        return BudgetSnapshot(
            datasets=tuple(self.datasets.values()),
            runs=tuple(self.runs.values()),
            evaluations=tuple(self.evaluations.values()),
        )


def _same(name: str, stated: str, right: str) -> bool:
    """Tell whether two facts are the same: to the letter, an epsilon but for rounding."""
    return stated == right or (name.startswith("epsilon") and abs(float(stated) - float(right)) <= _ROUNDING)


@dataclass(frozen=True, slots=True)
class _Today:
    """The rows that there are, by their keys."""

    datasets: Mapping[str, DatasetRow]
    runs: Mapping[str, RunRow]
    evaluations: Mapping[str, EvaluationRow]
    policies: Mapping[str, PolicyRow]
