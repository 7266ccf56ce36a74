"""How far a worker may be ahead of the ledger, and what of it may have been made unseen."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import pytest

from appliance.errors import ApplianceError, ArtefactMissing, Busy, IntegrityError
from appliance.events.catalog import event
from appliance.events.key import KeyLocked
from appliance.flows import desk as desks
from appliance.flows.catalog import find_run
from appliance.flows.desk import Desk
from appliance.flows.run.following import FORMER_WINDOW, Follower, unseen, window_of
from appliance.jobs import permits
from appliance.jobs.permits import Permits
from appliance.ledger.heads import TreeHead
from appliance.ledger.leaf import Actor
from appliance.ledger.ledger import Ledger
from appliance.ledger.transaction import Transaction
from appliance.privacy.journal import Journal
from tests.builders import desk_at
from tests.events import facts_of
from tests.unit.flows.test_budget import PLAN, run_of

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


# --- a worker that goes on while it is looked at --------------------------------------------------------------------


@dataclasses.dataclass
class Racing(Permits):
    """As if the worker journaled one more attempt and asked for it just before each look."""

    journal: Journal | None = None

    def asked(self) -> int:
        assert self.journal is not None
        self._asked = self.journal.attempt(Fraction(1, 10), 1.25)
        return self._asked


def test_a_worker_that_goes_on_while_its_journal_is_read_has_altered_nothing(
    ledger: Ledger, actor: Actor, tmp_path: Path
) -> None:
    """A journal that is read before the asking is looked at may be behind it."""
    desk = desk_at(ledger, actor, tmp_path)
    path = desk.home.run("r1").journal
    path.parent.mkdir(parents=True)
    with permits.opened() as ends, Journal.open(path, "r1", "ab" * 32) as kept:
        racing = Racing(ends.inherited, permits.VARIABLE, ends.reads, ends.writes, journal=kept)
        follower = Follower(desk, run_of(PLAN, id="r1"), lambda step: None, racing)
        for made in range(1, 20):
            assert follower._sound().attempts == made
        path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
        with pytest.raises(IntegrityError, match="altered while it trained"):
            follower._sound()


# --- a ledger that is away for a moment -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("away", "committed"), [(Busy("written by another"), True), (ArtefactMissing("its server is gone"), False)]
)
def test_a_worker_goes_on_once_the_ledger_is_back_whatever_became_of_the_entry(
    ledger: Ledger, actor: Actor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, away: ApplianceError, committed: bool
) -> None:
    """What was committed and could not be acknowledged is not taken for the work of somebody else."""
    desk = desk_at(ledger, actor, tmp_path)
    row = run_of(PLAN, id="r1")
    with desk.transact() as tx:
        tx.runs.add(row)
        tx.append(event("run.reserved", facts_of("run.reserved", run_id="r1")))
    path = desk.home.run("r1").journal
    path.parent.mkdir(parents=True)
    with permits.opened() as ends, Journal.open(path, "r1", "ab" * 32) as kept:
        racing = Racing(ends.inherited, permits.VARIABLE, ends.reads, ends.writes, journal=kept)
        follower = Follower(desk, row, lambda step: None, racing)
        real = Desk.transact

        @contextmanager
        def fail(self: Desk, policy_sha256: str | None = None) -> Iterator[Transaction]:
            if not committed:
                raise away
            with real(self, policy_sha256) as tx:
                yield tx
            raise away

        with monkeypatch.context() as patched:
            patched.setattr(Desk, "transact", fail)
            for _ in range(3):
                follower.poll()
            assert (follower.row.recorded_attempts > 0) == committed
        follower.poll()
        assert follower.row == find_run(ledger, "r1")
        assert follower.row.recorded_attempts == kept.state.attempts


def test_who_has_written_waits_for_others_to_sign_it(
    ledger: Ledger, actor: Actor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk, real, left = desk_at(ledger, actor, tmp_path), Ledger.sign, [3]

    def sign(self: Ledger) -> TreeHead:
        left[0] -= 1
        if left[0] >= 0:
            raise Busy("written by another")
        return real(self)

    monkeypatch.setattr(Ledger, "sign", sign)
    assert desk.ledger.prove(desk.record(KeyLocked()))
    left[0] = 10**6
    monkeypatch.setattr(desks, "_SIGNED_WITHIN_S", 0.0)
    with pytest.raises(Busy, match="is in the ledger, but not signed yet"):
        desk.record(KeyLocked())
    monkeypatch.undo()
    ledger.sign()
    assert ledger.verify().ok
