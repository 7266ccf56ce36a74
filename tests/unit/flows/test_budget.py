"""Who shares a budget, what a run costs before and after it is settled, and which cap holds."""

from __future__ import annotations

import dataclasses
import json
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
import yaml

from appliance.flows.budget import cap_of, overlaps, sample_rate_text, spend_of
from appliance.jobs.plan import PrivacyPlan, UnitOfPrivacy
from appliance.ledger.rows import DatasetRow, RunRow
from appliance.policy import policy as policies
from appliance.policy.policy import Policy
from appliance.privacy.accounting import PRV_ALLOWANCE, Mechanism
from appliance.privacy.budget import Cap
from appliance.values import to_json

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
    sampler_delta=1e-9,
)


@pytest.fixture
def run() -> RunRow:
    return RunRow(
        id="run_1",
        name="run",
        dataset_id="ds-1",
        model_id="m",
        state="reserved",
        spec_sha256="44" * 32,
        policy_sha256="55" * 32,
        plan=to_json(PLAN).decode().strip(),
        reserved_attempts=PLAN.attempts,
        epsilon_reserved="2",
        delta="1e-05",
    )


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
    spend = spend_of(dataclasses.replace(run, state=state, recorded_attempts=4))
    assert spend.mechanisms == (Mechanism(1.25, Fraction(1, 10), 12),)
    assert (spend.run_id, spend.dataset_id) == ("run_1", "ds-1")
    assert (spend.epsilon_gap, spend.sampler_delta) == (PRV_ALLOWANCE, 1e-9)


@pytest.mark.parametrize("state", ["finished", "failed", "aborted"])
@pytest.mark.parametrize("attempts", [0, 5, 12, 13])
def test_a_settled_run_costs_the_attempts_it_was_charged(run: RunRow, state: str, attempts: int) -> None:
    gap = str(Decimal("0.0042"))
    spend = spend_of(dataclasses.replace(run, state=state, charged_attempts=attempts, epsilon_gap=gap))
    assert sum(mechanism.attempts for mechanism in spend.mechanisms) == attempts
    assert all(m == Mechanism(1.25, Fraction(1, 10), attempts) for m in spend.mechanisms)
    assert (spend.epsilon_gap, spend.sampler_delta) == (0.0042, 1e-9)


def test_the_cap_is_that_of_the_class(dataset: DatasetRow) -> None:
    strict, loose = {"max_epsilon": 1, "max_delta": 2e-5}, {"max_epsilon": 8, "max_delta": 1e-6}
    rules = policy(default=strict, health=loose)
    assert cap_of(rules, dataset) == Cap(epsilon=8, delta=1e-6)  # the dataset is of class health


def test_a_class_that_the_policy_dropped_has_the_strictest_cap_of_all(dataset: DatasetRow) -> None:
    rules = policy(default={"max_epsilon": 3, "max_delta": 1e-6}, other={"max_epsilon": 1, "max_delta": 2e-5})
    assert cap_of(rules, dataset) == Cap(epsilon=1, delta=1e-6)


def test_a_sample_rate_is_written_exactly() -> None:
    assert sample_rate_text(Fraction(60, 600)) == "1/10"
    assert sample_rate_text(Fraction(1)) == "1/1"
