"""A release that could be deceived wrote reservations: whoever verifies the ledger works each out again, and sees it.

Here the proof of rows is put aside, so that the appliance believes an edited database and signs what follows from it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest

from appliance.events.data import DataSealed
from appliance.events.event import Event
from appliance.events.run import RunAborted
from appliance.flows import former
from appliance.flows.budget import BudgetSnapshot
from appliance.flows.policy import activate_in
from appliance.flows.recount import Finding, recount
from appliance.flows.run import reserve
from appliance.ledger.gateways import Gateway
from appliance.ledger.leaf import Actor
from appliance.ledger.ledger import Ledger
from appliance.ledger.rows import DatasetRow, RunRow
from appliance.ledger.transaction import Transaction
from tests.adversarial.test_transient_edits import Scene
from tests.builders import desk_at
from tests.databases import Behind, attack
from tests.events import facts_of
from tests.unit.flows.test_budget import PLAN
from tests.unit.flows.test_evaluation_budget import RUN_COSTS, policy, spend_of_run
from tests.unit.ledger.conftest import actor, behind, clock, config, dataset, ledger

__all__ = ["actor", "behind", "clock", "config", "dataset", "ledger"]


@pytest.fixture
def scene(ledger: Ledger, actor: Actor, dataset: DatasetRow, tmp_path: Path) -> Scene:
    """A policy in force and two datasets that share units, all as the appliance writes them."""
    desk = desk_at(ledger, actor, tmp_path)
    activate_in(desk, policy(20.0))
    trained = dataclasses.replace(dataset, id="trained", name="trained", purpose="evaluation")
    held = dataclasses.replace(trained, id="held", name="held", overlaps='["trained"]')
    for row in (trained, held):
        with desk.transact() as tx:
            tx.datasets.add(row)
            tx.append(DataSealed.of(facts_of("data.sealed", dataset_id=row.id)))
    return Scene(desk, policy(20.0), tmp_path, trained)


@pytest.fixture
def deceived(monkeypatch: pytest.MonkeyPatch) -> None:
    """An appliance that believes what its database says of rows."""
    find = Gateway._find_stored
    monkeypatch.setattr(Gateway, "_find_stored", lambda self, left, *rest: find(self, None, *rest))


def finish(scene: Scene, attempts: int) -> None:
    """End every open run, charged for some attempts."""
    for row in [row for row in runs(scene) if row.charged_attempts is None]:
        facts = {"run_id": row.id, "dataset_id": row.dataset_id, "attempts": attempts}
        facts |= {"epsilon_pld": "1.5", "epsilon_prv": "1.75"}
        with scene.desk.transact() as tx:
            tx.runs.update(row, state="aborted", charged_attempts=attempts, epsilon_gap="0.25")
            tx.append(RunAborted.of(facts_of("run.aborted", **facts)))


def runs(scene: Scene) -> Sequence[RunRow]:
    with scene.desk.ledger.read() as rows:
        return rows.runs.list()


def test_what_was_reserved_truly_is_worked_out_to_the_same(scene: Scene) -> None:
    scene.reserve()
    scene.reserve()
    finish(scene, 4)
    scene.evaluate()
    activate_in(scene.desk, policy(15.0))
    scene.rules = policy(15.0)
    scene.reserve()
    scene.evaluate()
    assert recount(scene.desk.ledger) == []
    assert scene.desk.ledger.verify().problems == ()


@pytest.mark.usefixtures("deceived")
def test_a_charge_that_was_hidden_while_a_run_was_reserved_is_seen(scene: Scene, behind: Behind) -> None:
    scene.reserve()
    finish(scene, 9)
    attack(behind, "UPDATE run SET charged_attempts = 0")
    scene.reserve()
    attack(behind, "UPDATE run SET charged_attempts = 9 WHERE charged_attempts = 0")
    assert scene.desk.ledger.verify().problems == ()  # nothing else sees it
    said = _said(scene)
    assert len(said) == 2
    assert "states epsilon_before 0.0 where it was" in said[0]
    assert "states epsilon_after" in said[1]


@pytest.mark.usefixtures("deceived")
def test_a_run_beyond_the_cap_is_seen(scene: Scene, behind: Behind) -> None:
    scene.rules = policy(RUN_COSTS + 0.1)
    activate_in(scene.desk, scene.rules)
    scene.reserve()
    finish(scene, 9)
    attack(behind, "UPDATE run SET charged_attempts = 0")
    scene.reserve()
    attack(behind, "UPDATE run SET charged_attempts = 9 WHERE charged_attempts = 0")
    assert any("reserves what could not be afforded: dataset trained has spent" in said for said in _said(scene))


@pytest.mark.usefixtures("deceived")
@pytest.mark.parametrize("decision", ["reserve", "evaluate"])
def test_a_policy_that_was_put_in_force_for_a_moment_is_seen(scene: Scene, behind: Behind, decision: str) -> None:
    loose, strict = scene.rules, policy(15.0)
    activate_in(scene.desk, strict)
    swap = "UPDATE policy SET state = CASE state WHEN 'active' THEN 'superseded' ELSE 'active' END"
    attack(behind, swap)
    getattr(scene, decision)()
    attack(behind, swap)
    assert scene.rules is loose
    assert scene.desk.ledger.verify().problems == ()
    said = _said(scene)
    assert any("reserves under a policy that was not in force" in one for one in said)
    assert any("states cap 20.0 where it was 15.0" in one for one in said)


@pytest.mark.usefixtures("deceived")
@pytest.mark.parametrize(
    ("there", "back"),
    [
        (
            "UPDATE dataset SET \"overlaps\" = '[]'",
            "UPDATE dataset SET \"overlaps\" = '[\"trained\"]' WHERE id = 'held'",
        ),
        ("UPDATE run SET dataset_id = 'x'", "UPDATE run SET dataset_id = 'trained' WHERE dataset_id = 'x'"),
        (
            "UPDATE run SET plan = replace(plan, '\"noise_multiplier\":1.25', '\"noise_multiplier\":125')",
            "UPDATE run SET plan = replace(plan, '\"noise_multiplier\":125', '\"noise_multiplier\":1.25')",
        ),
    ],
)
def test_any_other_row_that_the_budget_is_worked_out_from_is_seen_too(
    scene: Scene, behind: Behind, there: str, back: str
) -> None:
    scene.reserve()
    attack(behind, there)
    scene.evaluate()
    attack(behind, back)
    assert scene.desk.ledger.verify().problems == ()
    assert any("states epsilon_before" in said for said in _said(scene))


@pytest.mark.parametrize("name", ["cap", "epsilon_before", "epsilon_after", "plan"])
def test_a_signer_who_states_another_number_is_seen(scene: Scene, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    append = Transaction.append

    def lie(tx: Transaction, event: Event) -> int:
        if event.type == "run.reserved":
            stated = event.facts()
            false = stated["plan"] | {"noise_multiplier": "7"} if name == "plan" else "0.25"
            event = type(event).of(stated | {name: false})
        return append(tx, event)

    monkeypatch.setattr(Transaction, "append", lie)
    scene.reserve()
    assert any(name in said for said in _said(scene))


FILTER = ("lifetime_delta", "filter_order", "counted_by")


@pytest.mark.parametrize(
    ("name", "value"), [("", ""), ("epsilon_before", "0.25"), ("epsilon_after", "0.25"), ("cap", "8")]
)
def test_what_a_release_without_a_filter_reserved_is_worked_out_by_its_rule(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    append, snapshots = Transaction.append, [BudgetSnapshot(datasets=(), runs=(), evaluations=())]

    def formerly(tx: Transaction, event: Event) -> int:
        if event.type == "run.reserved":
            stated = {fact: said for fact, said in event.facts().items() if fact not in FILTER}
            stated |= former.weigh_formerly(snapshots[-1], scene.rules, spend_of_run("trained"), PLAN.sampler_delta)
            event = type(event).of(stated | ({name: value} if name else {}))
        return append(tx, event)

    monkeypatch.setattr(Transaction, "append", formerly)
    for _ in range(2):
        with scene.desk.ledger.read() as rows:
            snapshots.append(BudgetSnapshot.read(rows))
        scene.reserve()
    said = _said(scene)
    assert said == [] if not name else all(name in one for one in said)
    assert len(said) == (2 if name else 0)


def test_a_reservation_without_its_run_is_seen(scene: Scene, actor: Actor) -> None:
    with scene.desk.transact() as tx:
        tx.append(reserve.RunReserved.of(facts_of("run.reserved", run_id="run_lost")))
    assert _said(scene) == ["is about what there is no row of"]


def _said(scene: Scene) -> list[str]:
    found: list[Finding] = recount(scene.desk.ledger)
    return [finding.problem.partition(f"entry {finding.index} ")[2] for finding in found]
