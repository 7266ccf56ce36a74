"""Rows and events commit together or not at all; what an event may state."""

# ruff: noqa: PT012 (what must raise is leaving a transaction, so its block stands inside `raises`)

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import ApplianceError, ArtefactMissing, Busy, UsageError
from appliance.events.catalog import event
from appliance.events.key import KeyLocked
from appliance.ledger.canonical import LeafInvalid
from appliance.ledger.config import LedgerConfig
from appliance.ledger.leaf import Actor
from appliance.ledger.ledger import Ledger
from appliance.ledger.rows import DatasetRow, PolicyRow
from appliance.values import Private
from tests.builders import model_row, run_row
from tests.databases import Behind, PostgresDatabase


def test_a_row_and_its_event_commit_together(
    ledger: Ledger, actor: Actor, dataset: DatasetRow, data_facts: dict[str, Any]
) -> None:
    with ledger.transaction(actor, reason="first import", policy_sha256="11" * 32) as tx:
        tx.datasets.add(dataset)
        assert tx.datasets.get("ds-1") == dataset  # staged rows are seen
        index = tx.append(event("data.sealed", data_facts))
    with ledger.read() as rows:
        assert rows.datasets.get("ds-1") == dataset
        assert list(rows.datasets.list()) == [dataset]
    leaf = ledger.entry(index).leaf
    assert leaf["rows"][0]["table"] == "dataset"
    assert leaf["rows"][0]["key"] == "ds-1"
    assert leaf["policy_sha256"] == "11" * 32
    assert leaf["software"]["version"]
    assert (leaf["actor"], leaf["actor_auth"]) == ("p-7f3a", "asserted")
    assert ledger.verify().problems == ()


def test_every_table_travels_there_and_back(ledger: Ledger, actor: Actor, policy: PolicyRow) -> None:
    model, run = model_row(id="m"), run_row(id="r", policy_sha256=policy.sha256)
    with ledger.transaction(actor) as tx:
        tx.models.add(model)
        tx.runs.add(run)
        tx.policies.add(policy)
        tx.append(event("policy.activated", {"name": "demo", "sha256": policy.sha256}))
    with ledger.transaction(actor) as tx:
        done = tx.runs.update(run, state="finished", charged_attempts=9, epsilon_charged="7.5")
        tx.append(KeyLocked())
    with ledger.read() as rows:
        assert rows.models.get("m") == model
        assert rows.runs.get("r") == done == replace(run, state="finished", charged_attempts=9, epsilon_charged="7.5")
        assert rows.policies.get(policy.sha256) == policy
        assert rows.policies.find("nothing") is None
        with pytest.raises(ArtefactMissing):
            rows.runs.get("nothing")
    assert ledger.verify().ok


def test_rows_without_an_event_refuse_to_commit(ledger: Ledger, actor: Actor, dataset: DatasetRow) -> None:
    with pytest.raises(ApplianceError, match="without an event"), ledger.transaction(actor) as tx:
        tx.datasets.add(dataset)
    with ledger.read() as rows:
        assert list(rows.datasets.list()) == []
    assert ledger.verify().entries == 1


def test_an_exception_rolls_everything_back(
    ledger: Ledger, actor: Actor, dataset: DatasetRow, data_facts: dict[str, Any]
) -> None:
    with pytest.raises(KeyError), ledger.transaction(actor) as tx:
        tx.datasets.add(dataset)
        tx.append(event("data.sealed", data_facts))
        raise KeyError
    assert ledger.verify().entries == 1
    with ledger.read() as rows:
        assert rows.datasets.find("ds-1") is None


def test_rows_cannot_be_changed_after_the_event(ledger: Ledger, actor: Actor, dataset: DatasetRow) -> None:
    with pytest.raises(ApplianceError, match="after the event"), ledger.transaction(actor) as tx:
        tx.append(KeyLocked())
        tx.datasets.add(dataset)
    assert ledger.verify().entries == 1


def test_an_unused_transaction_writes_nothing(ledger: Ledger, actor: Actor) -> None:
    with ledger.transaction(actor) as tx:
        assert list(tx.datasets.list()) == []
    assert ledger.verify().entries == 1


def test_unique_names_are_refused_by_name(
    ledger: Ledger, actor: Actor, dataset: DatasetRow, data_facts: dict[str, Any]
) -> None:
    with ledger.transaction(actor) as tx:
        tx.datasets.add(dataset)
        tx.append(event("data.sealed", data_facts))
    for clash in (dataset, replace(dataset, id="ds-2"), replace(dataset, name="other")):
        with pytest.raises(UsageError, match="already a dataset"), ledger.transaction(actor) as tx:
            tx.datasets.add(clash)
    with pytest.raises(UsageError), ledger.transaction(actor) as tx:
        tx.datasets.add(replace(dataset, id="a", name="same"))
        tx.datasets.add(replace(dataset, id="b", name="same"))


def test_columns_take_only_their_type(ledger: Ledger, actor: Actor, dataset: DatasetRow) -> None:
    for changes in ({"chunks": "1"}, {"chunks": 1.0}, {"name": 3}, {"name": None}, {"name": Private("x")}):
        with pytest.raises(ApplianceError), ledger.transaction(actor) as tx:
            tx.datasets.add(replace(dataset, **changes))  # type: ignore[arg-type]
    with pytest.raises(ApplianceError), ledger.transaction(actor) as tx:
        tx.datasets.add(dataset)
        tx.datasets.update(dataset, id="ds-2")


@pytest.mark.parametrize(
    ("type_", "facts"),
    [
        ("no.such", {}),
        ("key.locked", {"unknown": 1}),
        ("key.unlocked", {}),
        ("key.unlocked", {"until": None}),
        ("key.unlocked", {"until": 1.5}),
        ("key.unlocked", {"until": Private("x")}),
        ("key.unlocked", {"until": {"deep": [Private(1)]}}),
        ("key.unlocked", {"until": b"x"}),
        ("key.unlocked", {"until": {"é": 1}}),
        ("key.unlocked", {"until": "\ud800"}),
        ("key.unlocked", {"until": "x" * 66_000}),
    ],
)
def test_facts_that_are_not_the_events_are_refused(
    ledger: Ledger, actor: Actor, type_: str, facts: dict[str, Any]
) -> None:
    with pytest.raises(LeafInvalid) as caught, ledger.transaction(actor) as tx:
        tx.append(event(type_, facts))
    assert "xxx" not in str(caught.value)
    assert ledger.verify().entries == 1


def test_many_entries_in_one_transaction_share_one_body(ledger: Ledger, actor: Actor, body_key: bytes) -> None:
    with ledger.transaction(actor, reason="bulk") as tx:
        indices = [tx.append(KeyLocked()) for _ in range(300)]
    assert indices == list(range(1, 301))
    assert ledger.body(1, body_key) == ledger.body(300, body_key) == {"name": "Ann Example", "reason": "bulk"}
    assert ledger.verify(body_key=body_key).bodies == {"ok": 300}


def test_a_clock_that_steps_back_is_noted_once(ledger: Ledger, actor: Actor, clock: Any) -> None:
    def act() -> None:
        with ledger.transaction(actor) as tx:
            tx.append(KeyLocked())

    act()
    clock.now -= timedelta(seconds=1)
    act()  # within tolerance
    clock.now -= timedelta(hours=1)
    act()
    act()
    clock.now -= timedelta(hours=1)
    act()
    types = [entry.leaf["type"] for entry in ledger.entries()]
    act_, back = "key.locked", "clock.regression"
    assert types == ["ledger.created", act_, act_, back, act_, act_, back, act_]
    times = [entry.leaf["time"] for entry in ledger.entries()]
    assert times == sorted(times)
    facts = next(ledger.entries(type="clock.regression")).leaf["facts"]
    assert facts["observed"] < facts["last"]
    assert ledger.verify().ok


def test_the_name_of_an_actor_is_in_no_file_in_clear(
    config: LedgerConfig, behind: Behind, tmp_path: Path, clock: Any
) -> None:
    root = behind.server.directory / "data" if isinstance(behind, PostgresDatabase) else tmp_path
    with Ledger.create(config, clock=clock) as ledger:
        actor = Actor("p-1", "Zebulon Quartermain")
        assert "Zebulon" not in repr(actor)
        with ledger.transaction(actor, reason="Xylophone") as tx:
            tx.append(KeyLocked())
        if isinstance(behind, PostgresDatabase):
            behind.execute("CHECKPOINT")
        found = {word: word in b"\0".join(contents(root)) for word in (b"key.locked", b"Zebulon", b"Xylophone")}
        assert found == {b"key.locked": True, b"Zebulon": False, b"Xylophone": False}


def contents(root: Path) -> Iterator[bytes]:
    """What is in the files below a directory, but for those that go meanwhile: other tests use the server too."""
    for directory, _, names in os.walk(root):
        for name in names:
            with suppress(FileNotFoundError):
                yield Path(directory, name).read_bytes()


def test_a_held_lock_is_busy(ledger: Ledger, config: LedgerConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.ledger.dialect.BUSY_SECONDS", 0.05)
    second = Ledger.open(config)
    with ledger._database.write(), pytest.raises(Busy):
        second.sign()
    second.close()
