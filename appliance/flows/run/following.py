"""Follow a run while its worker trains: from its journal, which is public, and from what it asks for.

The worker makes no attempt further beyond what the ledger has recorded than `window_of` says: it asks for each, and
waits. So whoever kills everything and cuts the journal has hidden at most that many, and they are charged.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from appliance.errors import ArtefactMissing, Busy, IntegrityError, WillNotFit
from appliance.events.run import RunCheckpointed, RunResumed, RunStarted
from appliance.flows import launch
from appliance.flows.catalog import find_run, plan_of
from appliance.flows.desk import Desk
from appliance.flows.home import Home
from appliance.jobs.permits import Permits
from appliance.jobs.plan import PrivacyPlan
from appliance.ledger.reading import LedgerReader
from appliance.ledger.rows import RunRow
from appliance.privacy import journal

FORMER_WINDOW = 10
"""How many attempts could be unrecorded in a run that an earlier release started: it recorded every tenth."""


_LEDGER_AWAY = Busy, ArtefactMissing
"""Errors of a ledger that somebody else writes, or whose server is away for a moment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Public progress of a run: attempts sampled and steps applied, of those planned."""

    run_id: str
    attempts: int
    steps: int
    plan: PrivacyPlan


Watch = Callable[[Step], None]


def window_of(reserved: int) -> int:
    """Say how many attempts may be made beyond those recorded: one, or 2 % of the reservation where that is more."""
    return max(1, reserved // 50)


def unseen(ledger: LedgerReader, run_id: str) -> int:
    """Find how many attempts beyond those recorded a run may have made, by the last entry about its attempts."""
    found = [
        entry
        for kind in (RunStarted, RunResumed, RunCheckpointed)
        for entry in ledger.entries(kind, run_id, limit=1, newest_first=True)
    ]
    if not found:
        return 0
    return int(max(found, key=lambda entry: entry.index).leaf["facts"].get("unseen", FORMER_WINDOW))


def recorded(row: RunRow) -> tuple[int, str] | None:
    """Give what the ledger recorded last of a run's journal: attempts, and the digest of a line."""
    return None if row.recorded_head is None else (row.recorded_attempts, row.recorded_head)


class Follower:
    """Stands beside the worker of one start: shows its progress, records its attempts, and permits the next ones.

    Args:
      desk: where it is recorded.
      row: the run, as it was started.
      watch: shown the progress.
      permits: through which the worker asks.
    """

    def __init__(self, desk: Desk, row: RunRow, watch: Watch, permits: Permits) -> None:
        self.desk, self.row, self.watch, self.permits = desk, row, watch, permits
        self.path = desk.home.run(row.id).journal
        self.plan = plan_of(row)
        self.window = window_of(row.reserved_attempts)
        self.size = -1
        self.step = Step(run_id=row.id, attempts=row.recorded_attempts, steps=0, plan=self.plan)
        permits.permit(row.recorded_attempts + self.window)

    def poll(self) -> None:
        """Show how far the journal has come; record it if the worker has come far enough.

        Raises:
          IntegrityError: the journal does not hold what the worker asked for.
        """
        size = self.path.stat().st_size if self.path.exists() else -1
        if size != self.size:
            self.size = size
            self._look()
        self.watch(self.step)
        if self.permits.asked() >= self.row.recorded_attempts + max(1, self.window // 2):
            with suppress(*_LEDGER_AWAY):  # the worker waits meanwhile; the ledger has waited for its lock already
                self._record(self._sound(), self.window)
                self.permits.permit(self.row.recorded_attempts + self.window)

    def finish(self) -> None:
        """Record where a worker came that has ended without a result: nothing of it is unseen then."""
        with suppress(WillNotFit, *_LEDGER_AWAY):
            launch.wait_for_workers(self.desk.home.run(self.row.id))
            try:
                self._record(self._sound(), 0)
            except IntegrityError:  # what was asked for stands: the journal will be seen not to continue it
                made = max(self.permits.asked(), self.row.recorded_attempts)
                self._write(made, str(self.row.recorded_head), 0)

    def _look(self) -> None:
        state = journal.read(self.path, self.row.id)
        if state is not None and state.intact:
            self.step = Step(run_id=self.row.id, attempts=state.attempts, steps=state.steps, plan=self.plan)

    def _sound(self) -> journal.JournalState:
        """Read a journal that holds all that was recorded and all that was asked for."""
        asked = self.permits.asked()  # before the journal is read: the worker goes on meanwhile
        state = journal.read(self.path, self.row.id)
        if state is None or not journal.continues(state, recorded(self.row)) or state.attempts < asked:
            raise IntegrityError(f"the journal of run {self.row.id} was altered while it trained")
        return state

    def _record(self, state: journal.JournalState, unseen: int) -> None:
        self._write(state.attempts, state.head_sha256, unseen)

    def _write(self, attempts: int, head: str, unseen: int) -> None:
        self.row = find_run(self.desk.ledger, self.row.id)  # also what was written last, and could not be acknowledged
        with self.desk.transact(self.row.policy_sha256) as tx:
            row = tx.runs.update(self.row, recorded_attempts=attempts, recorded_head=head)
            tx.append(RunCheckpointed(run_id=self.row.id, attempts=attempts, journal_sha256=head, unseen=unseen))
        self.row = row


def progress_of(home: Home, row: RunRow) -> Step:
    """Read the public progress of a run from its journal."""
    state = journal.read(home.run(row.id).journal, row.id)
    attempts, steps = (state.attempts, state.steps) if state else (row.charged_attempts or 0, 0)
    return Step(run_id=row.id, attempts=attempts, steps=steps, plan=plan_of(row))
