"""Evaluations and runs pay from the same lifetime budgets, also when both come at once."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from appliance.errors import BudgetExceeded, Busy, Interrupted, PolicyDenied
from appliance.events.catalog import event
from appliance.flows import budget
from appliance.flows.evaluation import evaluate
from appliance.flows.evaluation.evaluable import Evaluable, _check_held_out
from appliance.flows.policy import activate_in
from appliance.flows.run import reserve
from appliance.flows.timeline import Timeline
from appliance.jobs.rundir import RunDir
from appliance.ledger.leaf import Actor
from appliance.ledger.ledger import Ledger
from appliance.ledger.rows import DatasetRow, EvaluationRow, RunRow
from appliance.policy import policy as policies
from appliance.policy.policy import Policy
from appliance.privacy.evaluation import make_evaluation_plan
from appliance.privacy.filter import best_order
from appliance.privacy.lifetime import Cap, Spend, lifetime
from appliance.values import decimal
from tests.builders import bare_home, desk_at
from tests.events import facts_of
from tests.unit.flows.test_budget import PLAN, run_of

POLICY = Path(__file__).parents[3] / "policies" / "default.yaml"
ONE = make_evaluation_plan(declared_units=1000, comparisons=2)


def policy(max_epsilon: float) -> Policy:
    value = yaml.safe_load(POLICY.read_text())
    rules = value["classes"]["default"] | {"max_epsilon": max_epsilon, "max_delta": 1e-5}
    value["classes"] = {"default": rules, "health": rules}
    return policies.parse(json.dumps(value).encode(), "policy.yaml")


def evaluation(id_: str, dataset_id: str = "held", state: str = "settled") -> EvaluationRow:
    return EvaluationRow(
        id=id_,
        run_id="run-1",
        dataset_id=dataset_id,
        state=state,
        policy_sha256="55" * 32,
        declared_units=1000,
        noise_multiplier=str(ONE.noise_multiplier),
        epsilon="1.0000",
        delta=decimal(ONE.delta),
        sampler_delta=f"{ONE.sampler_delta:.60f}",
    )


def run_on(dataset_id: str, id_: str = "run-1") -> RunRow:
    return run_of(PLAN, id=id_, dataset_id=dataset_id, state="finished")


def spend_of_run(dataset_id: str) -> Spend:
    return Spend.of_plan("(new)", dataset_id, PLAN)


def cap_at(epsilon: float) -> Cap:
    return Cap(epsilon=epsilon, delta=1e-5, order=best_order(epsilon, 1e-5), unit=PLAN.unit)


RUN_COSTS = lifetime([spend_of_run("x")], cap_at(8.0)).epsilon


@pytest.fixture
def book(ledger: Ledger, actor: Actor) -> Callable[[Sequence[Any]], None]:
    """Writes rows with the entries that tell of them: data are sealed, runs and evaluations reserved and begun."""
    kinds = {DatasetRow: "datasets", RunRow: "runs", EvaluationRow: "evaluations"}

    def tell(row: Any) -> Sequence[tuple[str, dict[str, Any]]]:
        if isinstance(row, DatasetRow):
            return [("data.sealed", {"dataset_id": row.id})]
        if isinstance(row, RunRow):
            return [("run.reserved", {"run_id": row.id}), ("run.started", {"run_id": row.id})]
        return [("evaluation.reserved", {"evaluation_id": row.id, "run_id": row.run_id})]

    def write(rows: Sequence[Any]) -> None:
        with ledger.transaction(actor) as tx:
            for row in rows:
                getattr(tx, kinds[type(row)]).add(row)
            for type_, facts in (told for row in rows for told in tell(row)):
                tx.append(event(type_, facts_of(type_, **facts)))

    return write


@pytest.fixture
def in_force(ledger: Ledger, actor: Actor) -> Callable[[float], Policy]:
    """Puts the policy with this cap in force."""

    def activate(max_epsilon: float) -> Policy:
        chosen = policy(max_epsilon)
        activate_in(desk_at(ledger, actor), chosen)
        return chosen

    return activate


@pytest.fixture
def catalog(book: Callable[[Sequence[Any]], None], dataset: DatasetRow) -> None:
    """`trained` shares units with `held`, `other` with neither."""
    for id_, older in (("trained", "[]"), ("held", '["trained"]'), ("other", "[]")):
        book([dataclasses.replace(dataset, id=id_, name=id_, overlaps=older, purpose="evaluation")])


@pytest.mark.usefixtures("catalog")
@pytest.mark.parametrize("state", ["reserved", "settled", "failed"])
def test_evaluations_eat_the_budget_of_runs_on_overlapping_data(
    ledger: Ledger, book: Callable[[Sequence[Any]], None], state: str
) -> None:
    cap = policy(RUN_COSTS + 0.1)
    assert budget.afford(ledger, cap, spend_of_run("trained")).after.rule == "distributions"
    book([evaluation("eval-1", "held", state)])
    with pytest.raises(BudgetExceeded):
        budget.afford(ledger, cap, spend_of_run("trained"))
    budget.afford(ledger, cap, spend_of_run("other"))


@pytest.mark.usefixtures("catalog")
def test_runs_eat_the_budget_of_evaluations_on_overlapping_data(
    ledger: Ledger, book: Callable[[Sequence[Any]], None]
) -> None:
    cap = policy(RUN_COSTS + 0.1)
    asked = budget.spend_of_evaluation(evaluation("(new)"), PLAN.unit)
    found = budget.afford(ledger, cap, asked)
    assert (found.before.epsilon, found.after.epsilon) == (0.0, pytest.approx(1.0, abs=0.02))
    book([run_on("trained")])
    with pytest.raises(BudgetExceeded):
        budget.afford(ledger, cap, asked)
    budget.afford(ledger, cap, dataclasses.replace(asked, dataset_id="other"))


@pytest.mark.usefixtures("catalog")
def test_an_account_shows_what_evaluations_took(ledger: Ledger, book: Callable[[Sequence[Any]], None]) -> None:
    book([run_on("trained"), evaluation("eval-1"), evaluation("eval-2", state="reserved")])
    with ledger.read() as rows:
        snapshot = budget.BudgetSnapshot.read(rows)
    caps = budget.caps_of(ledger, policy(8), snapshot.datasets)
    spends = snapshot.spends(Timeline.read(ledger))
    found = {row.id: budget._account(row, snapshot, spends, caps[row.id]) for row in snapshot.datasets}
    assert found["held"].spent.epsilon == pytest.approx(1.0, abs=0.02)
    assert found["held"].reserved.epsilon > found["held"].spent.epsilon
    assert found["held"].reserved.rule == "filter"  # the evaluations were reserved after the run had begun
    assert found["held"].reserved.by_distributions < found["held"].reserved.by_filter
    assert found["held"].evaluations == snapshot.evaluations
    assert found["trained"].spent.epsilon == found["held"].spent.epsilon  # it shares units
    assert found["other"].reserved.epsilon == 0


def test_only_held_out_data_of_that_purpose_are_evaluated(dataset: DatasetRow) -> None:
    def row(id_: str, purpose: str, older: str = "[]") -> DatasetRow:
        return dataclasses.replace(dataset, id=id_, name=id_, purpose=purpose, overlaps=older)

    datasets = (
        row("first", "evaluation"),
        row("trained", "training", '["first"]'),
        row("later", "evaluation", '["trained"]'),
        row("free", "evaluation"),
        row("unused", "training"),
    )
    snapshot, run = budget.BudgetSnapshot(datasets=datasets, runs=(), evaluations=()), run_on("trained")
    for found, reason in zip(datasets, ("shares", "was trained", "shares", "", "ingested for training"), strict=True):
        if reason:
            with pytest.raises(PolicyDenied, match=reason):
                _check_held_out(run, found, snapshot)
        else:
            _check_held_out(run, found, snapshot)


# --- races -----------------------------------------------------------------------------------------------------------


def evaluable(tmp_path: Path, dataset: DatasetRow, rules: Policy) -> Evaluable:
    return Evaluable(
        home=bare_home(tmp_path),
        run=run_on("trained"),
        job=None,  # type: ignore[arg-type]
        model=None,  # type: ignore[arg-type]
        dataset=dataset,
        policy=rules,
        plan=ONE,
        adapter_sha256="00" * 32,
        released_sha256=None,
    )


@pytest.fixture
def interloper(monkeypatch: pytest.MonkeyPatch, book: Callable[[Sequence[Any]], None]) -> Callable[[Any], list[int]]:
    """`interloper(row)`: books a row right after the first check of the budget, as another process would."""

    def install(row: Any) -> list[int]:
        checks: list[int] = []
        afford = budget.afford

        def then_booked(*arguments: Any) -> Any:
            found = afford(*arguments)
            checks.append(1)
            if len(checks) == 1:
                book([row])
            return found

        monkeypatch.setattr(budget, "afford", then_booked)
        return checks

    return install


@pytest.mark.usefixtures("catalog")
@pytest.mark.parametrize("other", [evaluation("eval-2"), run_on("trained", "run-2")])
def test_an_evaluation_sees_what_was_booked_while_it_was_checked(
    ledger: Ledger,
    actor: Actor,
    tmp_path: Path,
    interloper: Callable[[Any], list[int]],
    in_force: Callable[[float], Policy],
    other: Any,
) -> None:
    rules = in_force(1.2)
    (tmp_path / "eval-1").mkdir()
    with ledger.read() as rows:
        held = rows.datasets.get("held")
    interloper(other)
    with pytest.raises(BudgetExceeded):
        evaluate._book(desk_at(ledger, actor), RunDir(tmp_path / "eval-1"), evaluable(tmp_path, held, rules), "00" * 32)
    with ledger.read() as rows:
        assert rows.evaluations.find("eval-1") is None
    assert not list(ledger.entries(type="evaluation.started"))


@pytest.mark.usefixtures("catalog")
def test_a_policy_that_came_into_force_meanwhile_lets_nothing_be_reserved(
    ledger: Ledger, actor: Actor, tmp_path: Path, in_force: Callable[[float], Policy]
) -> None:
    strict, loose = in_force(1.2), policy(8)
    with ledger.read() as rows:
        found = evaluable(tmp_path, rows.datasets.get("held"), loose)
    with pytest.raises(Busy, match="another policy came into force"):
        evaluate._book(desk_at(ledger, actor), RunDir(tmp_path / "eval-1"), found, "00" * 32)
    found = dataclasses.replace(found, policy=strict)
    evaluate._book(desk_at(ledger, actor), RunDir(tmp_path / "eval-1"), found, "00" * 32)
    assert len(list(ledger.entries(type="evaluation.reserved"))) == 1


@pytest.mark.usefixtures("catalog")
def test_where_the_budget_suffices_for_both_the_second_check_reserves(
    ledger: Ledger,
    actor: Actor,
    tmp_path: Path,
    interloper: Callable[[Any], list[int]],
    in_force: Callable[[float], Policy],
) -> None:
    rules = in_force(8)
    (tmp_path / "eval-1").mkdir()
    with ledger.read() as rows:
        held = rows.datasets.get("held")
    checks = interloper(evaluation("eval-2"))
    found, started = evaluate._book(
        desk_at(ledger, actor), RunDir(tmp_path / "eval-1"), evaluable(tmp_path, held, rules), "00" * 32
    )
    assert len(checks) == 2
    assert (found.before.epsilon, found.after.rule) == (pytest.approx(1.0, abs=0.02), "filter")
    assert (found.after.epsilon, found.after.share) == (pytest.approx(4.8, abs=0.1), pytest.approx(0.065, abs=0.01))
    kinds = [entry.leaf["type"] for entry in ledger.entries(subject="run-1")]
    assert kinds == ["evaluation.reserved", *("evaluation.reserved", "evaluation.started")]  # the other's, and ours
    assert ledger.entry(started).leaf["type"] == "evaluation.started"


@pytest.mark.usefixtures("catalog")
def test_a_run_sees_an_evaluation_that_was_booked_while_it_was_checked(
    ledger: Ledger,
    actor: Actor,
    interloper: Callable[[Any], list[int]],
    in_force: Callable[[float], Policy],
    dataset: DatasetRow,
) -> None:
    resolved = reserve.Resolved(
        run=None,  # type: ignore[arg-type]
        dataset=dataclasses.replace(dataset, id="trained", name="trained"),
        model=None,  # type: ignore[arg-type]
        policy=in_force(RUN_COSTS + 0.1),
        plan=PLAN,
        parameters=1,
    )
    interloper(evaluation("eval-1"))
    row = dataclasses.replace(run_on("trained", "run-9"), state="reserved")
    with pytest.raises(BudgetExceeded):
        reserve._book(desk_at(ledger, actor), row, resolved)
    with ledger.read() as rows:
        assert rows.runs.find("run-9") is None


# --- closing ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("catalog")
def test_closing_dead_evaluations_charges_them_once_and_twice_changes_nothing(
    ledger: Ledger, actor: Actor, tmp_path: Path, book: Callable[[Sequence[Any]], None]
) -> None:
    desk = desk_at(ledger, actor, tmp_path)
    book([evaluation("eval-1", state="reserved"), evaluation("eval-2")])
    for _ in range(2):
        evaluate.close_dead(desk)
        with ledger.read() as rows:
            assert [row.state for row in rows.evaluations.list()] == ["failed", "settled"]
        (entry,) = ledger.entries(type="evaluation.failed")
        assert entry.leaf["facts"]["epsilon_charged"] == "1.0000"
        assert entry.leaf["facts"]["code"] == Interrupted.exit_status


@pytest.mark.usefixtures("catalog")
def test_an_evaluation_that_is_being_supervised_is_not_closed(
    ledger: Ledger, actor: Actor, tmp_path: Path, book: Callable[[Sequence[Any]], None]
) -> None:
    desk = desk_at(ledger, actor, tmp_path)
    (desk.home.runs / "eval-1").mkdir(parents=True)
    with evaluate.launch.supervising(desk.home.run("eval-1")):
        book([evaluation("eval-1", state="reserved")])
        evaluate.close_dead(desk)
        with ledger.read() as rows:
            assert rows.evaluations.get("eval-1").state == "reserved"
    evaluate.close_dead(desk)
    with ledger.read() as rows:
        assert rows.evaluations.get("eval-1").state == "failed"
