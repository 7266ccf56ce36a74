"""Follow a run while its worker trains: from its journal, which is public and written ahead of every attempt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from appliance.errors import Busy, WillNotFit
from appliance.events.run import RunCheckpointed
from appliance.flows.catalog import find_run, plan_of
from appliance.flows.desk import Desk
from appliance.flows.home import Home
from appliance.jobs.plan import PrivacyPlan
from appliance.ledger.rows import RunRow
from appliance.privacy import journal

RECORD_EVERY = 10
"""Attempts after which the ledger records the journal's head, so that a journal rolled back further is noticed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Public progress of a run: attempts sampled and steps applied, of those planned."""

    run_id: str
    attempts: int
    steps: int
    plan: PrivacyPlan


Watch = Callable[[Step], None]


class Follower:
    """Reads the journal while the worker writes it: shows progress, and from time to time tells the ledger its head."""

    def __init__(self, desk: Desk, row: RunRow, watch: Watch) -> None:
        self.desk, self.row, self.watch = desk, row, watch
        self.path = desk.home.run(row.id).journal
        self.plan = plan_of(row)
        self.size = -1

    def poll(self) -> None:
        """Look at the journal if it grew."""
        size = self.path.stat().st_size if self.path.exists() else -1
        if size == self.size:
            return
        self.size = size
        state = journal.read(self.path, self.row.id)
        if state is None or not state.intact:
            return
        self.watch(Step(run_id=self.row.id, attempts=state.attempts, steps=state.steps, plan=self.plan))
        if state.attempts >= self.row.recorded_attempts + RECORD_EVERY:
            self._record(state)

    def _record(self, state: journal.JournalState) -> None:
        try:
            self._append(state)
        except (Busy, WillNotFit):
            return  # a run does not end for this; the next attempts will be recorded with these

    def _append(self, state: journal.JournalState) -> None:
        with self.desk.transact(self.row.policy_sha256) as tx:
            tx.runs.update(self.row, recorded_attempts=state.attempts, recorded_head=state.head_sha256)
            journal_sha256 = state.head_sha256
            tx.append(RunCheckpointed(run_id=self.row.id, attempts=state.attempts, journal_sha256=journal_sha256))
        self.row = find_run(self.desk.ledger, self.row.id)


def progress_of(home: Home, row: RunRow) -> Step:
    """Read the public progress of a run from its journal."""
    state = journal.read(home.run(row.id).journal, row.id)
    attempts, steps = (state.attempts, state.steps) if state else (row.charged_attempts or 0, 0)
    return Step(run_id=row.id, attempts=attempts, steps=steps, plan=plan_of(row))
