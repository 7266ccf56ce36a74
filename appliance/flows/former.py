"""How releases before there was a filter counted a lifetime, so that what they reserved can be worked out again."""

from __future__ import annotations

import math

from appliance.errors import BudgetExceeded
from appliance.flows import budget, catalog
from appliance.flows.budget import BudgetSnapshot
from appliance.flows.timeline import Places
from appliance.ledger.rows import DatasetRow
from appliance.policy.policy import Policy
from appliance.privacy.accounting import epsilon_pld
from appliance.privacy.lifetime import Spend
from appliance.values import decimal

_Part = tuple[Spend, float]
"""What was spent, and the part of delta that its noise sampler used up."""


def weigh_formerly(snapshot: BudgetSnapshot, policy: Policy, asked: Spend, sampler_delta: float) -> dict[str, str]:
    """Work out what such a release stated of a reservation: before, after, cap.

    It composed all spends by privacy loss distributions, whatever was chosen after what, at the delta of the policy.

    Raises:
      BudgetExceeded: it would have refused, for the dataset or one that shares a unit with it.
    """
    near = budget.overlaps(asked.dataset_id, snapshot.datasets)
    concerned = {row.id: row for row in snapshot.datasets if row.id == asked.dataset_id or row.id in near}
    found = {id_: _weigh_one(row, snapshot, policy, (asked, sampler_delta)) for id_, row in concerned.items()}
    return found[asked.dataset_id]


def _weigh_one(dataset: DatasetRow, snapshot: BudgetSnapshot, policy: Policy, asked: _Part) -> dict[str, str]:
    named = policy.classes.get(dataset.class_)
    rules = [named] if named else list(policy.classes.values())
    cap, delta = min(rule.max_epsilon for rule in rules), min(rule.max_delta for rule in rules)
    group = {dataset.id} | budget.overlaps(dataset.id, snapshot.datasets)
    earlier = [part for part in _parts(snapshot) if part[0].dataset_id in group]
    before, after = _epsilon(earlier, delta), _epsilon([*earlier, asked], delta)
    if after > cap:
        raise BudgetExceeded(f"dataset {dataset.id} has spent epsilon {before:.4f}, together {after:.4f}, of {cap:g}")
    facts = {"epsilon_before": round(before, 9), "epsilon_after": round(after, 9), "cap": cap}
    return {name: decimal(value) for name, value in facts.items()}


def _parts(snapshot: BudgetSnapshot) -> list[_Part]:
    units = {row.id: catalog.unit_of(row) for row in snapshot.datasets}
    nowhere = Places()
    runs = [(budget.spend_of(run, nowhere), catalog.plan_of(run).sampler_delta) for run in snapshot.runs]
    evaluations = [
        (budget.spend_of_evaluation(row, units[row.dataset_id]), float(row.sampler_delta))
        for row in snapshot.evaluations
    ]
    return [*runs, *evaluations]


def _epsilon(parts: list[_Part], delta: float) -> float:
    costly = [part for part in parts if part[0].costs]
    left = delta - math.fsum(sampler for _, sampler in costly)
    if left <= 0 < delta:
        return math.inf
    together = [mechanism for spend, _ in costly for mechanism in spend.mechanisms]
    return epsilon_pld(together, left) + math.fsum(max(0.0, spend.epsilon_gap) for spend, _ in costly)
