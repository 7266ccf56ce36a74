"""A run that an earlier release reserved goes on only within the present rule."""

from __future__ import annotations

import dataclasses
import json

import pytest
import yaml

from appliance.errors import BudgetExceeded
from appliance.events.catalog import event
from appliance.flows.desk import Desk
from appliance.flows.run.starting import require_afforded
from appliance.ledger.leaf import Actor
from appliance.ledger.ledger import Ledger
from appliance.ledger.rows import DatasetRow
from appliance.policy import policy as policies
from appliance.privacy.accounting import composition, epsilon_pld
from tests.builders import desk_at, policy_row
from tests.events import facts_of
from tests.unit.flows.test_budget import PLAN, POLICY, run_of

TWO = epsilon_pld([*composition(PLAN, PLAN.attempts)] * 2, 1e-5) + 0.05
"""A cap that distributions keep within with two such runs, at the whole delta, and the filter does not."""


@pytest.fixture
def desk(ledger: Ledger, actor: Actor, dataset: DatasetRow) -> Desk:
    """Two runs are reserved on one dataset, the second after the first had begun."""
    value = yaml.safe_load(POLICY.read_text())
    rules = value["classes"]["default"] | {"max_epsilon": TWO, "max_delta": 1e-5}
    value["classes"] = {"default": rules, "health": rules}
    rule = policies.parse(json.dumps(value).encode(), "policy.yaml")
    with ledger.transaction(actor) as tx:
        tx.policies.add(policy_row(sha256=rule.digest, name="p", text=rule.text.decode()))
        tx.datasets.add(dataclasses.replace(dataset, declared_units=600))
        tx.append(event("policy.activated", facts_of("policy.activated", name="p", sha256=rule.digest)))
        tx.append(event("data.sealed", facts_of("data.sealed", dataset_id="ds-1")))
    for id_ in ("r1", "r2"):
        with ledger.transaction(actor) as tx:
            tx.runs.add(run_of(PLAN, id=id_))
            tx.append(event("run.reserved", facts_of("run.reserved", run_id=id_, dataset_id="ds-1")))
            if id_ == "r1":
                tx.append(event("run.started", facts_of("run.started", run_id=id_, dataset_id="ds-1")))
    return desk_at(ledger, actor)


def test_what_the_former_rule_admitted_and_the_filter_does_not_is_not_started(desk: Desk) -> None:
    with pytest.raises(BudgetExceeded, match=r"run r2 was reserved under an earlier rule: .* Rényi filter") as refusal:
        require_afforded(desk, run_of(PLAN, id="r2"))
    assert "appliance train abort r2" in refusal.value.hint


def test_what_states_the_present_rule_was_checked_when_it_was_reserved(desk: Desk, actor: Actor) -> None:
    with desk.ledger.transaction(actor) as tx:
        tx.runs.add(run_of(PLAN, id="r3"))
        tx.append(event("run.reserved", facts_of("run.reserved", run_id="r3", dataset_id="ds-1", filter_order="3.1")))
    require_afforded(desk, run_of(PLAN, id="r3"))
