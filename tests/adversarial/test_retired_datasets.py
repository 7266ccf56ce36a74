"""A dataset that was retired is used by no new work, whoever edits its row, and whenever it was retired."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any, cast

import pytest

from appliance.errors import IntegrityError, PolicyDenied
from appliance.events.data import DataRetired
from appliance.events.states import CatalogState
from appliance.flows import budget
from appliance.flows.recount import recount
from appliance.flows.run import plan
from appliance.policy.run_file import GatesChoice
from appliance.privacy.lifetime import Spend
from tests.adversarial.test_reservations_recounted import deceived, finish, scene
from tests.adversarial.test_transient_edits import Scene, unguarded
from tests.databases import Behind, attack
from tests.unit.flows.test_evaluation_budget import spend_of_run
from tests.unit.ledger.conftest import actor, behind, clock, config, dataset, ledger

__all__ = ["actor", "behind", "clock", "config", "dataset", "deceived", "ledger", "scene"]
DECISIONS = {"reserve": "trained", "evaluate": "held"}


def retire(scene: Scene, id_: str) -> None:
    with scene.desk.transact() as tx:
        tx.datasets.update(tx.datasets.get(id_), state=CatalogState.RETIRED)
        tx.append(DataRetired(dataset_id=id_, open_runs=[]))


@pytest.mark.parametrize("decision", DECISIONS)
def test_nothing_new_is_reserved_on_it(scene: Scene, decision: str) -> None:
    getattr(scene, decision)()
    retire(scene, DECISIONS[decision])
    size = scene.desk.ledger.anchored().size
    with pytest.raises(PolicyDenied, match=f"dataset {DECISIONS[decision]} is retired"):
        getattr(scene, decision)()
    assert scene.desk.ledger.anchored().size == size
    assert recount(scene.desk.ledger) == []


@pytest.mark.parametrize("decision", DECISIONS)
def test_nor_where_it_is_retired_between_the_check_and_the_transaction(
    scene: Scene, decision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    afford = budget.afford

    def then_retired(*arguments: Any) -> Any:
        found = afford(*arguments)
        retire(scene, DECISIONS[decision])
        return found

    monkeypatch.setattr(budget, "afford", then_retired)
    with pytest.raises(PolicyDenied, match="is retired"):
        getattr(scene, decision)()


@pytest.mark.parametrize("decision", DECISIONS)
def test_its_row_edited_back_is_believed_by_nothing(scene: Scene, behind: Behind, decision: str) -> None:
    retire(scene, DECISIONS[decision])
    edit = "UPDATE dataset SET state = '{}' WHERE id = '" + DECISIONS[decision] + "'"
    with unguarded(behind):
        behind.execute(edit.format("active"))
        with pytest.raises(IntegrityError, match="is not what the ledger says"):
            getattr(scene, decision)()
        assert any(DECISIONS[decision] in problem for problem in scene.desk.ledger.verify().problems)
        behind.execute(edit.format("retired"))
    assert scene.desk.ledger.verify().problems == ()


@pytest.mark.usefixtures("deceived")
@pytest.mark.parametrize("decision", DECISIONS)
def test_a_release_that_was_deceived_is_seen_by_whoever_verifies(scene: Scene, behind: Behind, decision: str) -> None:
    retire(scene, DECISIONS[decision])
    edit = "UPDATE dataset SET state = '{}' WHERE id = '" + DECISIONS[decision] + "'"
    attack(behind, edit.format("active"))
    getattr(scene, decision)()
    attack(behind, edit.format("retired"))
    assert scene.desk.ledger.verify().problems == ()  # nothing else sees it
    assert any("reserves on a dataset that was retired" in found.problem for found in recount(scene.desk.ledger))


def test_an_entry_that_retires_and_leaves_the_row_is_seen(scene: Scene) -> None:
    with scene.desk.transact() as tx:
        tx.append(DataRetired(dataset_id="held", open_runs=[]))
    (found,) = recount(scene.desk.ledger)
    assert "retires a dataset that its row says may be used" in found.problem


def test_what_it_spent_still_counts_for_what_shares_its_units(scene: Scene) -> None:
    scene.reserve()
    finish(scene, 9)
    before = budget.afford(scene.desk.ledger, scene.rules, _asked("held")).before.epsilon
    retire(scene, "trained")
    after = budget.afford(scene.desk.ledger, scene.rules, _asked("held")).before.epsilon
    assert before == after > 0


def _asked(dataset_id: str) -> Spend:
    return dataclasses.replace(spend_of_run(dataset_id), run_id="(new)")


def test_a_plan_is_refused_by_the_first_look(scene: Scene) -> None:
    retire(scene, "trained")
    with scene.desk.ledger.read() as rows:
        row = rows.datasets.get("trained")
    resolved = plan.Resolved(
        run=cast(Any, SimpleNamespace(gates=GatesChoice())),  # the only part of it that is asked for
        dataset=row,
        model=None,  # type: ignore[arg-type]
        policy=scene.rules,
        plan=None,  # type: ignore[arg-type]
        parameters=1,
    )
    with pytest.raises(PolicyDenied, match="dataset trained is retired"):
        plan.afford(scene.desk.ledger, resolved)
