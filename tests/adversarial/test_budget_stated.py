"""How a budget stands as of a report's tree head: stated as it was, and worked out again by who verifies."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.events.budget import BudgetStated
from appliance.events.event import Event
from appliance.events.release import BundleExported
from appliance.flows import budget, standing
from appliance.flows.policy import activate_in
from appliance.flows.recount import recount
from appliance.ledger.transaction import Transaction
from tests.adversarial.test_reservations_recounted import finish, runs, scene
from tests.adversarial.test_transient_edits import Scene
from tests.events import facts_of
from tests.unit.flows.test_evaluation_budget import policy
from tests.unit.ledger.conftest import actor, behind, clock, config, dataset, ledger

__all__ = ["actor", "behind", "clock", "config", "dataset", "ledger", "scene"]


def stated(scene: Scene, run_id: str) -> list[dict[str, Any]]:
    standing.state(scene.desk, run_id)
    return [dict(leaf["facts"]) for leaf in scene.desk.ledger.leaves(BudgetStated) if leaf["facts"]["run_id"] == run_id]


def test_it_is_what_the_lifetime_is_as_of_this_entry(scene: Scene) -> None:
    scene.reserve()
    first = runs(scene)[0].id
    (alone,) = stated(scene, first)
    assert [run["run_id"] for run in alone["open"]] == [first]
    assert (alone["epsilon_spent"], alone["exports"]) == ("0.0", [])
    assert float(alone["epsilon_reserved"]) > 1
    finish(scene, 9)
    scene.reserve()
    with scene.desk.transact() as tx:
        tx.append(BundleExported.of(facts_of("bundle.exported", run_id=first, bundle_id="b_1", recipient="hospital-x")))
        at = tx.append(BundleExported.of(facts_of("bundle.exported", run_id="other", bundle_id="b_2")))
    later = stated(scene, first)[-1]
    assert float(later["epsilon_reserved"]) > float(later["epsilon_spent"]) > 1
    assert [run["run_id"] for run in later["open"]] == [run.id for run in runs(scene) if run.charged_attempts is None]
    assert later["exports"] == [{"bundle_id": "b_1", "recipient": "hospital-x", "entry": at - 1}]
    activate_in(scene.desk, policy(15.0))
    assert stated(scene, first)[-1]["cap"] == "15.0"
    assert recount(scene.desk.ledger) == []
    assert scene.desk.ledger.verify().problems == ()


def test_it_is_stated_again_where_more_was_spent_meanwhile(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.reserve()
    first, work_out, again = runs(scene)[0].id, standing.standing, iter((scene.reserve,))

    def then_reserved(*arguments: Any) -> dict[str, Any]:
        found = work_out(*arguments)
        next(again, lambda: None)()
        return found

    monkeypatch.setattr(standing, "standing", then_reserved)
    (facts,) = stated(scene, first)
    assert len(facts["open"]) == 2
    monkeypatch.undo()
    assert recount(scene.desk.ledger) == []


def test_runs_on_data_that_share_units_count_too(scene: Scene) -> None:
    scene.reserve()
    first = runs(scene)[0].id
    with scene.desk.ledger.read() as rows:
        snapshot = budget.BudgetSnapshot.read(rows)
    facts = standing.standing(snapshot, budget.Past.read(scene.desk.ledger), scene.rules, "held")
    assert [run["run_id"] for run in facts["open"]] == [first]
    assert facts["epsilon_reserved"] == stated(scene, first)[0]["epsilon_reserved"]


@pytest.mark.parametrize(
    ("name", "false"),
    [
        ("epsilon_spent", "0.5"),
        ("epsilon_reserved", "0.5"),
        ("epsilon_reserved", None),
        ("cap", "8"),
        ("lifetime_delta", "0.1"),
        ("counted_by", "mixed units"),
        ("open", []),
        ("exports", [{"bundle_id": "b", "recipient": "x", "entry": 3}]),
    ],
)
def test_a_signer_who_states_something_else_is_seen(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, name: str, false: Any
) -> None:
    scene.reserve()
    scene.reserve()
    append = Transaction.append

    def lie(tx: Transaction, event: Event) -> int:
        facts = {key: value for key, value in {**event.facts(), name: false}.items() if value is not None}
        return append(tx, type(event).of(facts))

    with monkeypatch.context() as lying:
        lying.setattr(Transaction, "append", lie)
        standing.state(scene.desk, runs(scene)[0].id)
    found = [finding.problem for finding in recount(scene.desk.ledger)]
    assert any(f"states {name}" in problem for problem in found)
