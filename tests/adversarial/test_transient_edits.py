"""Rows that are edited only for as long as something is decided: nobody who looks later could see it.

The attacker writes the database past every guard and puts all back before anybody verifies. They hold no signing key.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from appliance.errors import ApplianceError, BudgetExceeded, IntegrityError
from appliance.events.catalog import event
from appliance.events.data import DataSealed
from appliance.flows import budget
from appliance.flows.desk import Desk
from appliance.flows.evaluation import evaluate
from appliance.flows.policy import activate_in
from appliance.flows.run import reserve
from appliance.flows.run.following import unseen
from appliance.jobs.rundir import RunDir
from appliance.ledger import merkle
from appliance.ledger.config import LedgerConfig
from appliance.ledger.leaf import Actor
from appliance.ledger.ledger import Ledger
from appliance.ledger.reading import LedgerReader
from appliance.ledger.rows import (
    COLUMNS,
    DatasetRow,
    EvaluationRow,
    ModelRow,
    PolicyRow,
    RunRow,
    WatermarkKeyRow,
    row_digest,
)
from appliance.ledger.schema import TABLE_OF
from appliance.policy.policy import Policy
from appliance.policy.run_file import GatesChoice
from tests.builders import desk_at, model_row
from tests.databases import Behind, attack
from tests.events import facts_of
from tests.unit.flows.test_budget import PLAN
from tests.unit.flows.test_evaluation_budget import RUN_COSTS, evaluable, evaluation, policy, run_on
from tests.unit.ledger.conftest import actor, behind, clock, dataset, ledger
from tests.unit.ledger.conftest import config as bare_config

__all__ = ["actor", "bare_config", "behind", "clock", "dataset", "ledger"]

NAMES = {
    DatasetRow: "datasets",
    ModelRow: "models",
    RunRow: "runs",
    PolicyRow: "policies",
    EvaluationRow: "evaluations",
    WatermarkKeyRow: "watermark_keys",
}
READ_BY = {
    "reserve": (DatasetRow, RunRow, EvaluationRow, PolicyRow, WatermarkKeyRow),
    "evaluate": (DatasetRow, RunRow, EvaluationRow, PolicyRow),
    "activate": (PolicyRow,),
    "read": tuple(NAMES),
}


@pytest.fixture
def register(tmp_path: Path) -> Path:
    return tmp_path / "register"


@pytest.fixture
def config(bare_config: LedgerConfig, register: Path) -> LedgerConfig:
    """A ledger that keeps a copy of its register, as every home's does."""
    return dataclasses.replace(bare_config, register=register)


@dataclass
class Scene:
    """A ledger with rows of every table, and what can be decided by them."""

    desk: Desk
    rules: Policy
    directory: Path
    trained: DatasetRow

    def reserve(self) -> None:
        resolved = reserve.Resolved(
            run=cast(Any, SimpleNamespace(gates=GatesChoice())),  # the only part of it that is asked for
            dataset=self.trained,
            model=MODEL,
            policy=self.rules,
            plan=PLAN,
            parameters=1,
        )
        row = dataclasses.replace(run_on("trained", f"run-{secrets.token_hex(4)}"), policy_sha256=self.rules.digest)
        reserve._book(self.desk, dataclasses.replace(row, name=row.id, state="reserved"), resolved)

    def evaluate(self) -> None:
        with self.desk.ledger.read() as rows:
            held = rows.datasets.get("held")
        run_dir = RunDir(self.directory / f"eval-{secrets.token_hex(4)}")
        evaluate._book(self.desk, run_dir, evaluable(self.directory, held, self.rules), "00" * 32)

    def activate(self) -> None:
        activate_in(self.desk, self.rules)

    def read(self) -> None:
        with self.desk.ledger.read() as rows:
            for name in NAMES.values():
                getattr(rows, name).list()


MODEL = model_row()
KEY = WatermarkKeyRow(id="wmk_1", commitment="1" * 64, wrapped_key="w", key_epoch=1, state="current")


@pytest.fixture
def scene(ledger: Ledger, actor: Actor, dataset: DatasetRow, tmp_path: Path) -> Scene:
    desk = desk_at(ledger, actor, tmp_path)
    activate_in(desk, policy(1.0))
    activate_in(desk, policy(20.0))
    trained = dataclasses.replace(dataset, id="trained", name="trained", purpose="evaluation")
    held = dataclasses.replace(trained, id="held", name="held", overlaps='["trained"]')
    settled = dataclasses.replace(run_on("trained"), state="finished", charged_attempts=9, epsilon_charged="2")
    for name, row in (
        ("datasets", trained),
        ("datasets", held),
        ("models", MODEL),
        ("runs", settled),
        ("evaluations", evaluation("eval-0")),
        ("watermark_keys", KEY),
    ):
        with desk.transact() as tx:
            getattr(tx, name).add(row)
            tx.append(event("data.sealed", facts_of("data.sealed")))
    return Scene(desk, policy(20.0), tmp_path, trained)


def stored(behind: Behind, kind: type[Any]) -> list[dict[str, Any]]:
    """The rows of a table as they lie there, with the event id."""
    names = [str(column.name) for column in TABLE_OF[kind].columns]
    quoted = ", ".join(f'"{name}"' for name in names)
    return [dict(zip(names, row, strict=True)) for row in behind.rows(f'SELECT {quoted} FROM "{kind.table}"')]


def literal(value: Any) -> str:
    if value is None:
        return "NULL"
    return str(value) if isinstance(value, int) else "'" + value.replace("'", "''") + "'"


def others(kind: type[Any], name: str, value: Any) -> list[Any]:
    """Values that a column could have instead."""
    column = next((column for column in COLUMNS[kind] if column.name == name), None)
    if column is None:  # the event id
        return ["0" * 32]
    if column.meaning is not None and issubclass(column.meaning, StrEnum):
        return [word.value for word in column.meaning if word.value != value]
    changed: list[Any] = [0, 1, 2] if column.whole else [f"{value}0", "0"]
    return [other for other in [*changed, *([None] if column.nullable else [])] if other != value]


def edits(behind: Behind, kind: type[Any], alternatives: int = 9) -> Iterator[tuple[str, str, str]]:
    """Each edit of a column of a row: what it is, SQL that makes it, SQL that undoes it."""
    key_name = str(next(iter(TABLE_OF[kind].primary_key.columns)).name)
    for row in stored(behind, kind):
        for name, value in row.items():
            for other in others(kind, name, value)[:alternatives]:
                set_to = 'UPDATE "{}" SET "{}" = {} WHERE "{}" = {}'
                key = row[key_name]
                there = set_to.format(kind.table, name, literal(other), key_name, literal(key))
                after = other if name == key_name else key
                back = set_to.format(kind.table, name, literal(value), key_name, literal(after))
                yield f"{kind.table} {key}: {name} {value!r} -> {other!r}", there, back


@contextmanager
def unguarded(behind: Behind) -> Iterator[None]:
    """Have every guard put aside for many edits."""
    aside, back = behind.guards()
    behind.execute(*aside)
    yield
    behind.execute(*back)


def refuses(scene: Scene, decision: str) -> bool:
    """Whether a decision is refused because of what a row says."""
    try:
        getattr(scene, decision)()
    except IntegrityError as error:
        return "is not what the ledger says" in error.message or "is missing from the database" in error.message
    return False


def keep_register(ledger: Ledger) -> None:
    """Have a copy of the register kept, whether one is due or not."""
    with ledger.read() as rows:
        rows.runs.list()
    assert ledger._prover is not None
    assert ledger._built is not None
    ledger._prover.keep(ledger._signers(ledger._built[1])[0].sign_statement)


def read_by(kind: type[Any]) -> list[str]:
    return [decision for decision, kinds in READ_BY.items() if kind in kinds]


@pytest.mark.parametrize("kind", NAMES, ids=lambda kind: kind.table)
def test_no_decision_accepts_a_row_that_is_edited_while_it_is_made(
    scene: Scene, behind: Behind, kind: type[Any]
) -> None:
    size = scene.desk.ledger.anchored().size
    tried = 0
    with unguarded(behind):
        for what, there, back in list(edits(behind, kind)):
            behind.execute(there)
            for decision in read_by(kind):
                assert refuses(scene, decision), f"{decision} accepted {what}"
            behind.execute(back)
            tried += 1
    assert tried >= len(COLUMNS[kind])
    assert scene.desk.ledger.anchored().size == size, "something was written"
    for decision in read_by(kind):
        getattr(scene, decision)()
    assert scene.desk.ledger.verify().problems == ()


@pytest.mark.parametrize("kind", [DatasetRow, RunRow, EvaluationRow, PolicyRow], ids=lambda kind: kind.table)
@pytest.mark.parametrize("decision", ["reserve", "evaluate"])
def test_nor_one_that_is_edited_between_the_check_and_the_transaction(
    scene: Scene, behind: Behind, kind: type[Any], decision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    afford, pending = budget.afford, [""]

    def then_edited(*arguments: Any) -> Any:
        found = afford(*arguments)
        behind.execute(pending[0])
        return found

    monkeypatch.setattr(budget, "afford", then_edited)
    with unguarded(behind):
        for what, there, back in list(edits(behind, kind, alternatives=1)):
            pending[0] = there
            assert refuses(scene, decision), f"{decision} accepted {what}"
            behind.execute(back)
    assert scene.desk.ledger.verify().problems == ()


def test_a_budget_that_was_spent_does_not_come_back_for_a_moment(scene: Scene, behind: Behind, actor: Actor) -> None:
    """The attack as it was found: no attempts charged, start, set back."""
    scene.rules = policy(RUN_COSTS + 0.1)
    activate_in(scene.desk, scene.rules)
    with pytest.raises(BudgetExceeded):
        scene.reserve()
    attack(behind, "UPDATE run SET charged_attempts = 0", "UPDATE evaluation SET noise_multiplier = '1000'")
    with pytest.raises(IntegrityError):
        scene.reserve()
    attack(behind, "UPDATE run SET charged_attempts = 9", f"UPDATE evaluation SET noise_multiplier = '{NOISE}'")
    assert scene.desk.ledger.verify().problems == ()
    with pytest.raises(BudgetExceeded):
        scene.reserve()


NOISE = evaluation("x").noise_multiplier


@pytest.mark.parametrize("kind", NAMES, ids=lambda kind: kind.table)
def test_a_row_that_is_taken_out_or_put_in_is_missed(scene: Scene, behind: Behind, kind: type[Any]) -> None:
    key_name = str(next(iter(TABLE_OF[kind].primary_key.columns)).name)
    rows = stored(behind, kind)
    for row in rows:
        insert = f'INSERT INTO "{kind.table}" VALUES ({", ".join(literal(value) for value in _ordered(kind, row))})'
        key = f'"{key_name}" = {literal(row[key_name])}'
        attack(behind, f'DELETE FROM "{kind.table}" WHERE {key}')
        for decision in read_by(kind):
            with pytest.raises(IntegrityError, match="is missing from the database"):
                getattr(scene, decision)()
        attack(behind, insert)
    forged = rows[0] | dict.fromkeys((key_name, *kind.unique), "9" * 64)
    values = ", ".join(literal(value) for value in _ordered(kind, forged))
    attack(behind, f'INSERT INTO "{kind.table}" VALUES ({values})')
    for decision in read_by(kind):
        with pytest.raises(IntegrityError, match="is not what the ledger says"):
            getattr(scene, decision)()


def _ordered(kind: type[Any], row: dict[str, Any]) -> list[Any]:
    return [row[str(column.name)] for column in TABLE_OF[kind].columns]


def test_an_earlier_version_of_a_row_is_not_taken_for_the_newest(scene: Scene, behind: Behind) -> None:
    before = next(row for row in stored(behind, PolicyRow) if row["state"] == "superseded")
    activate_in(scene.desk, policy(1.0))  # the strict one is in force again, by a newer entry
    newest = next(row for row in stored(behind, PolicyRow) if row["sha256"] == before["sha256"])
    for row in (before, newest):
        changes = ", ".join(f'"{name}" = {literal(value)}' for name, value in row.items())
        attack(behind, f"UPDATE policy SET {changes} WHERE sha256 = {literal(row['sha256'])}")
        if row is before:
            with pytest.raises(IntegrityError, match="is not what the ledger says"):
                activate_in(scene.desk, policy(20.0))
    activate_in(scene.desk, policy(20.0))


@pytest.mark.parametrize("kept", [True, False], ids=["with a register", "without one"])
@pytest.mark.parametrize("caches", [True, False], ids=["caches too", "row and leaf alone"])
def test_whoever_rewrites_the_entry_that_covers_the_row_is_found_out_by_a_new_process(
    scene: Scene, behind: Behind, config: LedgerConfig, register: Path, kept: bool, caches: bool
) -> None:
    scene.desk.ledger.sign()
    scene.read()
    keep_register(scene.desk.ledger)
    if not kept:
        register.unlink()
    row = next(iter(stored(behind, RunRow)))
    false = row | {"charged_attempts": 0}
    old, new = (row_digest("run", columns) for columns in (row, false))
    ((index, leaf),) = [
        (i, bytes(data)) for i, data in behind.rows("SELECT idx, leaf FROM entry") if old.encode() in bytes(data)
    ]
    forged = leaf.replace(old.encode(), new.encode())
    statements = [
        "UPDATE run SET charged_attempts = 0",
        f"UPDATE entry SET leaf = {blob(behind, forged)} WHERE idx = {index}",
    ]
    if caches:
        hashes = [
            merkle.leaf_hash(forged if i == index else bytes(data))
            for i, data in sorted(behind.rows("SELECT idx, leaf FROM entry"))
        ]
        frontier = b"".join(merkle.extend([], 0, hashes))
        statements += [
            f"UPDATE entry SET leaf_hash = {blob(behind, hashes[index])} WHERE idx = {index}",
            f"UPDATE head SET frontier = {blob(behind, frontier)}",
        ]
    copy = behind.copy()
    scene.desk.ledger._database.close()
    attack(behind, *statements)
    with pytest.raises(IntegrityError):
        read_runs(config)
    behind.restore(copy)
    read_runs(config)


def read_runs(config: LedgerConfig) -> None:
    """As a new process does."""
    with LedgerReader.open(config) as reader, reader.read() as rows:
        rows.runs.list()


def blob(behind: Behind, data: bytes) -> str:
    return f"x'{data.hex()}'" if behind.kind == "sqlite" else f"'\\x{data.hex()}'::bytea"


def test_a_register_that_somebody_else_wrote_is_not_believed(
    scene: Scene, behind: Behind, config: LedgerConfig, register: Path
) -> None:
    ledger = scene.desk.ledger
    scene.read()
    keep_register(ledger)
    row = next(iter(stored(behind, RunRow)))
    old, new = (row_digest("run", columns) for columns in (row, row | {"charged_attempts": 0}))
    kept = register.read_bytes()
    assert old.encode() in kept
    attack(behind, "UPDATE run SET charged_attempts = 0")
    for forged in (kept.replace(old.encode(), new.encode()), kept.replace(b"\n", b"A\n", 1), kept[:-1], b"", b"\n"):
        register.write_bytes(forged)
        with LedgerReader.open(config) as reader, reader.read() as rows:
            with pytest.raises(IntegrityError, match="is not what the ledger says"):
                rows.runs.list()
            assert len(rows.datasets.list()) == 2  # the register was made anew


def test_an_entry_by_which_something_is_decided_cannot_be_altered_or_hidden(scene: Scene, behind: Behind) -> None:
    ledger = scene.desk.ledger
    found = [leaf["index"] for leaf in ledger.leaves(DataSealed)]
    assert found == [entry.index for entry in ledger.entries(DataSealed)]
    at = found[1]
    hide, show = (f"UPDATE entry SET type = '{name}' WHERE idx = {at}" for name in ("key.locked", "data.sealed"))
    attack(behind, hide)
    assert [leaf["index"] for leaf in ledger.leaves(DataSealed)] == found  # a column is a cache, and not looked at
    attack(behind, show)
    (leaf,) = behind.rows(f"SELECT leaf FROM entry WHERE idx = {at}")
    forged = bytes(leaf[0]).replace(b'"dataset_id"', b'"dataset_ix"')
    assert forged != leaf[0]
    attack(behind, f"UPDATE entry SET leaf = {blob(behind, forged)} WHERE idx = {at}")
    for read in (ledger.leaves, ledger.entries):
        with pytest.raises(IntegrityError, match=f"entry {at} of the ledger was altered"):
            list(read(DataSealed))
    attack(behind, f"DELETE FROM entry WHERE idx = {at}")
    with pytest.raises(IntegrityError, match=f"entry {at} of the ledger was altered"):
        list(ledger.leaves(DataSealed))
    attack(behind, _restoring(behind, leaf[0], at))


@pytest.mark.parametrize("column", ["type", "subject", "leaf"])
def test_what_a_run_may_have_done_unseen_is_not_hidden(scene: Scene, behind: Behind, column: str) -> None:
    ledger = scene.desk.ledger
    for type_, more in (("run.started", {"unseen": 3}), ("run.checkpointed", {"unseen": 2})):
        with scene.desk.transact() as tx:
            at = tx.append(event(type_, facts_of(type_, run_id="run-1", **more)))
    assert unseen(ledger, "run-1") == 2
    ((leaf,),) = behind.rows(f"SELECT leaf FROM entry WHERE idx = {at}")
    false = blob(behind, bytes(leaf).replace(b'"unseen":2', b'"unseen":0')) if column == "leaf" else "'x'"
    right = {"type": "'run.checkpointed'", "subject": "'run-1'", "leaf": blob(behind, bytes(leaf))}[column]
    attack(behind, f"UPDATE entry SET {column} = {false} WHERE idx = {at}")
    if column == "leaf":
        for read in (lambda: unseen(ledger, "run-1"), lambda: ledger.entry(at), lambda: ledger.leaf(at)):
            with pytest.raises(IntegrityError, match=f"entry {at} of the ledger was altered"):
                read()
    else:
        assert unseen(ledger, "run-1") == 2
    attack(behind, f"UPDATE entry SET {column} = {right} WHERE idx = {at}")


def _restoring(behind: Behind, leaf: bytes, at: int) -> str:
    """SQL that puts the entry back, so that the ledger can be closed."""
    import orjson

    facts = orjson.loads(bytes(leaf))
    subject = literal(facts["subject"])
    values = f"{at}, '{facts['event_id']}', {blob(behind, bytes(leaf))}, {blob(behind, merkle.leaf_hash(bytes(leaf)))}"
    columns = "idx, event_id, leaf, leaf_hash, type, ts, subject"
    return f"INSERT INTO entry ({columns}) VALUES ({values}, '{facts['type']}', '{facts['time']}', {subject})"


def test_a_state_nobody_knows_is_refused_by_its_digest_first(scene: Scene, behind: Behind) -> None:
    attack(behind, "UPDATE run SET state = 'paid'")
    with pytest.raises(ApplianceError, match="is not what the ledger says"):
        scene.read()
    attack(behind, "UPDATE run SET state = 'finished'")
