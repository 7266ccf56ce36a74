"""In what state a run is said to be, while it comes to its end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance.events.catalog import event
from appliance.events.states import RunState
from appliance.files import lock
from appliance.flows.catalog import find_run
from appliance.flows.desk import Desk
from appliance.flows.home import Home
from appliance.flows.run import listing
from appliance.ledger.leaf import Actor
from appliance.ledger.ledger import Ledger
from appliance.ledger.transaction import Reading
from tests.builders import desk_at
from tests.events import facts_of
from tests.unit.flows.test_budget import PLAN, run_of


@pytest.fixture
def desk(ledger: Ledger, actor: Actor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """A desk with a run that is supervised."""
    desk = desk_at(ledger, actor, tmp_path)
    with desk.transact() as tx:
        tx.runs.add(run_of(PLAN, id="r1", state=RunState.RUNNING))
        tx.append(event("run.reserved", facts_of("run.reserved", run_id="r1")))

    @contextmanager
    def reader(home: Home) -> Iterator[Ledger]:
        yield ledger

    @contextmanager
    def rows(home: Home) -> Iterator[Reading]:
        with ledger.read() as read:
            yield read

    monkeypatch.setattr(Home, "reader", reader)
    monkeypatch.setattr(Home, "rows", rows)
    desk.home.run("r1").path.mkdir(parents=True)
    held = [lock(desk.home.run("r1").supervisor_lock)]
    desk.home.run("r1").supervisor_lock.write_text("4711\n")
    real = listing.progress_of

    def end(home: Home, row: object) -> listing.Step:
        """Let the run end, and its supervisor, once its row was read."""
        if held:
            with desk.transact() as tx:
                tx.runs.update(tx.runs.get("r1"), state=RunState.FINISHED, charged_attempts=3, epsilon_charged="1.5")
                tx.append(event("run.settled", facts_of("run.settled", run_id="r1")))
            os.close(held.pop())
        return real(home, row)  # type: ignore[arg-type]

    monkeypatch.setattr(listing, "progress_of", end)
    yield desk
    assert not held


def test_a_run_that_has_just_ended_is_not_called_interrupted(desk: Desk) -> None:
    (listed,) = listing.list_runs(desk.home)
    assert (listed.state, listed.alive) == ("finished", False)


def test_who_looks_at_one_run_sees_that_it_has_ended(desk: Desk) -> None:
    assert listing.look(desk.home, "r1").state == "finished"


def test_a_state_is_that_of_the_moment_of_its_row(desk: Desk) -> None:
    row = find_run(desk.ledger, "r1")
    assert listing.state_of(desk.home, row) == "running"
    assert listing.state_of(desk.home, find_run(desk.ledger, "r1")) == "finished"


def test_a_run_without_a_supervisor_is_interrupted(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    row = find_run(desk.ledger, "r1")
    listing.look(desk.home, "r1")
    with desk.transact() as tx:
        tx.runs.update(tx.runs.get("r1"), state=RunState.RUNNING)
        tx.append(event("run.resumed", facts_of("run.resumed", run_id="r1")))
    assert listing.state_of(desk.home, row) == "interrupted"
    assert listing.look(desk.home, "r1").state == "interrupted"
