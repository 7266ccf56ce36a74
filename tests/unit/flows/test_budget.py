"""Who shares a budget, what a run costs before and after it is settled, which cap holds, and what came after what."""

from __future__ import annotations

import dataclasses
import json
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml

from appliance.events.catalog import event
from appliance.flows.budget import cap_of, caps_of, overlaps, sample_rate_text, spend_of
from appliance.flows.timeline import Places, Timeline
from appliance.jobs.plan import PrivacyPlan, UnitOfPrivacy
from appliance.ledger.leaf import Actor
from appliance.ledger.ledger import Ledger
from appliance.ledger.rows import DatasetRow, PolicyRow, RunRow
from appliance.policy import policy as policies
from appliance.policy.policy import Policy
from appliance.privacy.accounting import PRV_ALLOWANCE, Mechanism
from appliance.privacy.filter import best_order
from appliance.privacy.lifetime import NEVER, sampler_distance
from appliance.values import to_json
from tests.builders import run_row
from tests.events import facts_of

POLICY = Path(__file__).parents[3] / "policies" / "default.yaml"
PLAN = PrivacyPlan(
    unit=UnitOfPrivacy(),
    declared_units=600,
    expected_batch_size=60,
    steps=9,
    spare_steps=3,
    max_grad_norm=1.0,
    clipping="fixed",
    noise_multiplier=1.25,
    epsilon=2.0,
    delta=1e-5,
    sampler_delta=1e-19,
)
PLACES = Places(reserved_at=3, output_at=4)


@pytest.fixture
def run() -> RunRow:
    return run_of(PLAN)


def run_of(plan: PrivacyPlan, **changes: Any) -> RunRow:
    """A run that was reserved with this plan."""
    spent = {"plan": to_json(plan).decode().strip(), "reserved_attempts": plan.attempts, "epsilon_reserved": "2"}
    return run_row(**(spent | changes))


def policy(**classes: dict[str, float]) -> Policy:
    """The default policy with these classes in place of its own, each with the caps given."""
    value = yaml.safe_load(POLICY.read_text())
    rules = value["classes"]["default"]
    value["classes"] = {name: rules | caps for name, caps in classes.items()}
    return policies.parse(json.dumps(value).encode(), "policy.yaml")


def test_an_overlap_holds_in_both_directions(dataset: DatasetRow) -> None:
    def named(id_: str, older: str) -> DatasetRow:
        return dataclasses.replace(dataset, id=id_, overlaps=older)

    rows = [named("a", "[]"), named("b", '["a"]'), named("c", '["b"]'), named("d", "[]"), named("e", '["a","d"]')]
    assert overlaps("a", rows) == {"b", "e"}  # both came later
    assert overlaps("b", rows) == {"a", "c"}  # one before, one later
    assert overlaps("d", rows) == {"e"}
    assert overlaps("e", rows) == {"a", "d"}
    assert overlaps("a", list(reversed(rows))) == {"b", "e"}
    assert overlaps("z", rows) == frozenset()


@pytest.mark.parametrize("state", ["reserved", "running"])
def test_a_run_that_is_not_settled_costs_its_reservation(run: RunRow, state: str) -> None:
    spend = spend_of(dataclasses.replace(run, state=state, recorded_attempts=4), PLACES)
    assert spend.mechanisms == (Mechanism(1.25, Fraction(1, 10), 12),)
    assert spend.reserved == spend.mechanisms
    assert (spend.run_id, spend.dataset_id, spend.unit) == ("run-1", "ds-1", PLAN.unit)
    assert (spend.epsilon_gap, spend.sampler_distance) == (PRV_ALLOWANCE, sampler_distance(1e-19, 2.0))
    assert (spend.reserved_at, spend.output_at, spend.ended_at) == (3, 4, NEVER)


@pytest.mark.parametrize("state", ["finished", "failed", "aborted"])
@pytest.mark.parametrize("attempts", [0, 5, 12, 13])
def test_a_settled_run_costs_the_attempts_it_was_charged(run: RunRow, state: str, attempts: int) -> None:
    gap = str(Decimal("0.0042"))
    spend = spend_of(dataclasses.replace(run, state=state, charged_attempts=attempts, epsilon_gap=gap), PLACES)
    assert sum(mechanism.attempts for mechanism in spend.mechanisms) == attempts
    assert all(m == Mechanism(1.25, Fraction(1, 10), attempts) for m in spend.mechanisms)
    assert spend.reserved == (Mechanism(1.25, Fraction(1, 10), 12),)
    assert (spend.epsilon_gap, spend.sampler_distance) == (0.0042, sampler_distance(1e-19, 2.0))


def test_the_cap_is_that_of_the_class(dataset: DatasetRow) -> None:
    strict, loose = {"max_epsilon": 1, "max_delta": 2e-5}, {"max_epsilon": 8, "max_delta": 1e-6}
    rules = policy(default=strict, health=loose)
    cap = cap_of(rules, dataset, 3.1)  # the dataset is of class health
    assert (cap.epsilon, cap.delta, cap.order, cap.unit) == (8, 1e-6, 3.1, PLAN.unit)


def test_a_class_that_the_policy_dropped_has_the_strictest_cap_of_all(dataset: DatasetRow) -> None:
    rules = policy(default={"max_epsilon": 3, "max_delta": 1e-6}, other={"max_epsilon": 1, "max_delta": 2e-5})
    cap = cap_of(rules, dataset, 3.1)
    assert (cap.epsilon, cap.delta) == (1, 1e-6)


def test_delta_follows_the_declared_units_below_the_policys_ceiling(dataset: DatasetRow) -> None:
    """50,000 units were counted at 2e-5 while each run was stated at 2e-7."""
    rules = policy(default={"max_epsilon": 8, "max_delta": 2e-5}, health={"max_epsilon": 8, "max_delta": 2e-5})
    assert cap_of(rules, dataclasses.replace(dataset, declared_units=50_000), 3.1).delta == 2e-7
    assert cap_of(rules, dataclasses.replace(dataset, declared_units=100), 3.1).delta == 2e-5


# --- what the ledger tells of the order of things ---------------------------------------------------------------------


def told(ledger: Ledger, actor: Actor, *events: tuple[str, dict[str, object]], policy_sha256: str = "") -> None:
    for type_, facts in events:
        with ledger.transaction(actor, None, policy_sha256 or None) as tx:
            tx.append(event(type_, facts_of(type_, **facts)))


def test_what_was_reserved_begun_and_ended_is_read_from_the_entries(ledger: Ledger, actor: Actor) -> None:
    one, two, three = ({"run_id": name} for name in ("r1", "r2", "r3"))
    evaluation = {"evaluation_id": "e1", "run_id": "r1"}
    told(ledger, actor, ("run.reserved", one), ("run.reserved", two), ("run.reserved", three), ("run.started", one))
    told(ledger, actor, ("evaluation.reserved", evaluation), ("run.resumed", one), ("run.started", two))
    told(ledger, actor, ("run.aborted", one), ("run.failed", two))
    found = Timeline.read(ledger)
    assert found.of("r1") == Places(reserved_at=1, output_at=4, ended_at=8)
    assert found.of("r2") == Places(reserved_at=2, output_at=7, ended_at=9)
    assert found.of("r3") == Places(reserved_at=3, output_at=NEVER)
    assert found.of("e1") == Places(reserved_at=5, output_at=5)
    assert found.of("a row that somebody put there") == Places(reserved_at=NEVER, output_at=-1)


def test_the_order_of_the_filter_is_the_one_that_was_sealed(ledger: Ledger, actor: Actor, dataset: DatasetRow) -> None:
    told(ledger, actor, ("data.sealed", {"dataset_id": dataset.id, "filter_order": "2.4"}))
    for epsilon in (8, 1):
        rules = policy(default={"max_epsilon": epsilon}, health={"max_epsilon": epsilon})
        assert caps_of(ledger, rules, [dataset])[dataset.id].order == 2.4


def test_a_dataset_sealed_before_there_was_a_filter_has_the_order_of_the_policy_it_was_sealed_under(
    ledger: Ledger, actor: Actor, dataset: DatasetRow
) -> None:
    then = policy(default={"max_epsilon": 3, "max_delta": 2e-5}, health={"max_epsilon": 3, "max_delta": 2e-5})
    now = policy(default={"max_epsilon": 8, "max_delta": 2e-5}, health={"max_epsilon": 8, "max_delta": 2e-5})
    row = PolicyRow(sha256=then.digest, name="then", text=then.text.decode(), state="superseded")
    with ledger.transaction(actor) as tx:
        tx.policies.add(row)
        tx.append(event("policy.activated", {"name": "then", "sha256": then.digest}))
    told(ledger, actor, ("data.sealed", {"dataset_id": dataset.id}), policy_sha256=then.digest)
    cap = caps_of(ledger, now, [dataset])[dataset.id]
    assert (cap.epsilon, cap.order) == (8, best_order(3, 1e-5))


def test_a_sample_rate_is_written_exactly() -> None:
    assert sample_rate_text(Fraction(60, 600)) == "1/10"
    assert sample_rate_text(Fraction(1)) == "1/1"
