"""How far a worker may be ahead of the ledger, and what of it may have been made unseen."""

from __future__ import annotations

import pytest

from appliance.events.catalog import event
from appliance.flows.run.following import FORMER_WINDOW, unseen, window_of
from appliance.ledger.leaf import Actor
from appliance.ledger.ledger import Ledger
from tests.events import facts_of

DIGEST = "ab" * 32


@pytest.mark.parametrize(
    ("reserved", "window"), [(1, 1), (6, 1), (99, 1), (100, 2), (149, 2), (150, 3), (1000, 20), (4030, 80)]
)
def test_at_most_one_attempt_or_a_fiftieth_of_the_reservation_is_unrecorded(reserved: int, window: int) -> None:
    assert window_of(reserved) == window
    assert window <= max(1, 0.02 * reserved)


def told(ledger: Ledger, actor: Actor, type_: str, **facts: object) -> None:
    with ledger.transaction(actor) as tx:
        tx.append(event(type_, facts_of(type_, **facts)))


def test_what_was_unseen_is_what_the_last_entry_permits(ledger: Ledger, actor: Actor) -> None:
    told(ledger, actor, "run.reserved", run_id="r1")
    assert unseen(ledger, "r1") == 0  # no key was released
    told(ledger, actor, "run.started", run_id="r1", unseen=3)
    assert unseen(ledger, "r1") == 3
    told(ledger, actor, "run.checkpointed", run_id="r1", attempts=3, journal_sha256=DIGEST, unseen=0)
    assert unseen(ledger, "r1") == 0
    told(ledger, actor, "run.resumed", run_id="r1", unseen=2)
    told(ledger, actor, "run.checkpointed", run_id="r2", attempts=3, journal_sha256=DIGEST, unseen=9)
    assert unseen(ledger, "r1") == 2


@pytest.mark.parametrize("last", ["run.started", "run.resumed", "run.checkpointed"])
def test_a_run_of_an_earlier_release_may_have_hidden_as_many_as_that_recorded_at_once(
    ledger: Ledger, actor: Actor, last: str
) -> None:
    told(ledger, actor, last, run_id="r1")
    assert unseen(ledger, "r1") == FORMER_WINDOW
