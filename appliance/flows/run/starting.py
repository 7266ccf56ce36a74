"""What is written before a worker of a run starts: whether it may go on, what is charged already, the signed entry."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass

from appliance.errors import BudgetExceeded, IntegrityError
from appliance.events.run import RunReserved, RunResumed, RunStarted
from appliance.events.states import RunState
from appliance.flows import budget
from appliance.flows.catalog import find_run, plan_of
from appliance.flows.desk import Desk
from appliance.flows.run.following import recorded, unseen, window_of
from appliance.flows.run.partners import Partners
from appliance.flows.run.settle import is_undamaged, settle
from appliance.flows.timeline import Timeline
from appliance.ledger.rows import RunRow
from appliance.privacy import journal
from appliance.values import to_json


@dataclass(frozen=True, slots=True)
class Start:
    """One start of a run: how many ranks this machine runs, the index of its entry, and the nonce in it."""

    ranks: int
    entry: int
    nonce: str


def require_afforded(desk: Desk, row: RunRow) -> None:
    """Refuse to go on with a run that was reserved before there was a filter and that the filter does not admit.

    Raises:
      BudgetExceeded: some dataset's lifetime cap would be exceeded.
    """
    reserved = next(desk.ledger.entries(RunReserved, subject=row.id, limit=1), None)
    if reserved is not None and "filter_order" in reserved.leaf["facts"]:
        return
    try:
        budget.afford(desk.ledger, desk.policy, budget.spend_of(row, Timeline.read(desk.ledger).of(row.id)))
    except BudgetExceeded as refusal:
        message = f"run {row.id} was reserved under an earlier rule: {refusal.message}"
        raise BudgetExceeded(message, hint=f"settle it with `appliance train abort {row.id}`") from None


def mark_started(desk: Desk, row: RunRow, ranks: int, others: Partners | None) -> tuple[RunRow, Start]:
    """Record and sign that so many workers are about to start."""
    first = row.state == RunState.RESERVED
    state = _journal(desk, row, first)
    nonce = secrets.token_hex(16)
    several = {"ranks": ranks * others.count, **others.facts()} if others else {"ranks": ranks}
    started = (RunStarted if first else RunResumed)(
        run_id=row.id,
        dataset_id=row.dataset_id,
        attempts_left=max(0, row.reserved_attempts - state.attempts),
        nonce=nonce,
        unseen=window_of(row.reserved_attempts),
        **several,
    )
    with desk.transact(row.policy_sha256) as tx:
        tx.runs.update(row, state=RunState.RUNNING, recorded_attempts=state.attempts, recorded_head=state.head_sha256)
        index = tx.append(started)
    return find_run(desk.ledger, row.id), Start(ranks, index, nonce)


def _journal(desk: Desk, row: RunRow, first: bool) -> journal.JournalState:
    """Begin the journal, or read it and count in it what may have been made and is not in it any more."""
    run_dir = desk.home.run(row.id)
    plan_sha256 = hashlib.sha256(to_json(plan_of(row))).hexdigest()
    if first:
        journal.Journal.open(run_dir.journal, row.id, plan_sha256).close()
    if not is_undamaged(run_dir, row):
        broken = IntegrityError(f"the journal or the job of run {row.id} was altered; it is charged in full")
        settle(desk, row, broken)
        raise broken
    with journal.Journal.open(run_dir.journal, row.id, plan_sha256) as opened:
        hidden = 0 if first else unseen(desk.ledger, row.id)
        opened.miss(journal.charge(opened.state, row.reserved_attempts, recorded(row), hidden) - opened.state.attempts)
        return opened.state
