"""How a dataset's lifetime budget stands when a report or a bundle is made: an entry that both can cite.

`ledger verify` works each such entry out again, as it does reservations.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from appliance.events.budget import BudgetStated
from appliance.events.release import BundleExported
from appliance.flows.budget import BudgetSnapshot, Past, overlaps
from appliance.flows.desk import Desk
from appliance.policy.policy import Policy
from appliance.privacy.lifetime import Spent, lifetime
from appliance.values import decimal


def state(desk: Desk, run_id: str) -> None:
    """State the budget of each dataset that a run, or an evaluation of it, has spent from."""
    stated: set[str] = set()
    while True:
        policy, past = desk.policy, Past.read(desk.ledger)
        with desk.ledger.read() as rows:
            snapshot, run = BudgetSnapshot.read(rows), rows.runs.get(run_id)
        concerned = {run.dataset_id, *(row.dataset_id for row in snapshot.evaluations if row.run_id == run_id)}
        left = sorted(concerned - stated)
        if not left:
            return
        exports = list(ledger_exports(desk.ledger.leaves(BundleExported), run_id))
        facts = standing(snapshot, past, policy, left[0])
        with desk.decide(policy) as tx:
            if BudgetSnapshot.read(tx) == snapshot:
                tx.append(BudgetStated.of({"run_id": run_id, **facts, "exports": exports}))
                stated.add(left[0])


def standing(snapshot: BudgetSnapshot, past: Past, policy: Policy, dataset_id: str) -> dict[str, Any]:
    """Work out how a dataset's budget stands at one moment, as the entry states it."""
    cap = past.caps(policy, snapshot.datasets)[dataset_id]
    group = {dataset_id} | overlaps(dataset_id, snapshot.datasets)
    open_runs = [run for run in snapshot.runs if run.dataset_id in group and run.charged_attempts is None]
    going = {run.id for run in open_runs}
    own = [spend for spend in snapshot.spends(past.timeline) if spend.dataset_id in group]
    reserved = lifetime(own, cap)
    return {
        "dataset_id": dataset_id,
        "cap": decimal(cap.epsilon),
        "lifetime_delta": decimal(cap.delta),
        "filter_order": decimal(cap.order),
        "counted_by": reserved.rule,
        **_bounded("epsilon_spent", lifetime([spend for spend in own if spend.run_id not in going], cap)),
        **_bounded("epsilon_reserved", reserved),
        "open": [
            {"run_id": run.id, "dataset_id": run.dataset_id, "epsilon": run.epsilon_reserved}
            for run in sorted(open_runs, key=lambda run: run.id)
        ],
    }


def ledger_exports(leaves: Iterable[Mapping[str, Any]], run_id: str) -> Iterable[dict[str, Any]]:
    """List what was exported of a run, from the entries that say so."""
    for leaf in leaves:
        facts = leaf["facts"]
        if facts["run_id"] == run_id:
            yield {"bundle_id": facts["bundle_id"], "recipient": facts["recipient"], "entry": leaf["index"]}


def _bounded(name: str, spent: Spent) -> dict[str, str]:
    return {name: decimal(round(spent.epsilon, 9))} if math.isfinite(spent.epsilon) else {}
