"""`train`: start (once reserved), resume, abort. Launch, follow, settle.

    reserve.py: refuse or reserve the worst case -> selftest.py: the engine, without data or key
    -> here: started leaf, signed -> worker -> settle.py: by attempts

The reservation is signed and anchored before the worker exists, and the key agent releases the dataset's key only
against the signed `run.started` leaf. Whatever is killed, the reservation stands until `settle` charges the attempts.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import (
    ApplianceError,
    ArtefactMissing,
    Busy,
    IntegrityError,
    Interrupted,
    KeyUnavailable,
    UsageError,
    WillNotFit,
)
from appliance.events.run import RunCheckpointed, RunResumed, RunStarted
from appliance.events.states import RunState
from appliance.files import write_atomic
from appliance.flows import launch, machines, selftest
from appliance.flows.agent import evidence_for
from appliance.flows.home import Home, Operator
from appliance.flows.keys import require_unsealed
from appliance.flows.machines import Machines
from appliance.flows.settle import plan_of, settle, undamaged
from appliance.jobs.plan import PrivacyPlan
from appliance.jobs.rundir import RunDir
from appliance.jobs.ticket import Rendezvous
from appliance.jobs.train import TrainJob, TrainResult
from appliance.ledger.leaf import Actor
from appliance.ledger.ledger import Ledger
from appliance.ledger.rows import RunRow
from appliance.privacy import journal
from appliance.values import to_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Public progress of a run: attempts sampled and steps applied, of those planned."""

    run_id: str
    attempts: int
    steps: int
    plan: PrivacyPlan


@dataclass(frozen=True, slots=True)
class _Start:
    """One start of a run: how many ranks this machine runs, and the nonce of its entry."""

    ranks: int
    nonce: str


Watch = Callable[[Step], None]
Tell = Callable[[list[Path], TrainJob], None]

RECORD_EVERY = 10
"""Attempts after which the ledger records the journal's head, so that a journal rolled back further is noticed."""


def resume(
    home: Home,
    run_id: str,
    operator: Operator,
    watch: Watch,
    *,
    nproc: int | None = None,
    others: Machines | None = None,
    tell: Tell = lambda tickets, job: None,
) -> RunRow:
    """Start a reserved run or go on with one that was interrupted; settles it when it ends.

    Args:
      home: the appliance's home.
      run_id: the run.
      operator: on whose behalf.
      watch: shown the progress.
      nproc: how many processes train on each machine; None is what the job says. The plan is the same for any number.
      others: the other machines that take part in this start; None is none.
      tell: given the tickets for them, before anything waits for them.

    Raises:
      Busy: the run is being supervised already.
      Interrupted: it was interrupted again, and can be resumed again.
      ApplianceError: the worker's refusal; the run is settled as failed.
    """
    run_dir = home.run(run_id)
    with home.ledger() as ledger:
        actor = home.actor(operator)
        row = _open_run(ledger, run_id)
        require_unsealed(home)
        with launch.supervising(run_dir):
            job = _reserved_job(home, ledger, actor, row)
            if others:
                _require_network(job, row, others)
            _self_test(home, ledger, actor, row)
            row, start = _mark_started(home, ledger, actor, row, nproc or job.engine.nproc, others)
            follower = _Follower(ledger, actor, row, run_dir.journal, watch)
            try:
                rendezvous = _invite(home, run_dir, job, start, others, tell) if others else None
                result = launch.run_worker(
                    run_dir, TrainResult, watch=follower.poll, ranks=start.ranks, rendezvous=rendezvous
                )
            except (KeyboardInterrupt, Interrupted) as interruption:
                raise _resumable(row, interruption) from None
            except (WillNotFit, KeyUnavailable, Busy) as obstacle:
                raise _resumable(row, obstacle) from None
            except ApplianceError as failure:
                settle(home, ledger, actor, follower.row, failure)
                raise
            return settle(home, ledger, actor, follower.row, result)


def _self_test(home: Home, ledger: Ledger, actor: Actor, row: RunRow) -> None:
    """See the engine pass its self-test before anything could release a key; a run whose engine fails ends here."""
    try:
        selftest.ensure(home, ledger, actor, row)
    except (KeyboardInterrupt, Interrupted, WillNotFit, Busy) as obstacle:
        raise _resumable(row, obstacle) from None
    except ApplianceError as failure:
        settle(home, ledger, actor, row, failure)
        raise


def _reserved_job(home: Home, ledger: Ledger, actor: Actor, row: RunRow) -> TrainJob:
    """Read the job that was reserved; a run whose job was altered ends here."""
    try:
        return home.run(row.id).reserved_job(TrainJob, row.spec_sha256)
    except IntegrityError:
        broken = IntegrityError(f"the journal or the job of run {row.id} was altered; it is charged in full")
        settle(home, ledger, actor, row, broken)
        raise broken from None


def _require_network(job: TrainJob, row: RunRow, others: Machines) -> None:
    """Refuse a network that the ranks would refuse, while nothing is marked as started."""
    try:
        machines.require_network(job.isolation, others)
    except ApplianceError as obstacle:
        refusal = _resumable(row, obstacle)
        refusal.hint = f"{obstacle.hint}; then {refusal.hint}"
        raise refusal from None


def _invite(home: Home, run_dir: RunDir, job: TrainJob, start: _Start, others: Machines, tell: Tell) -> Rendezvous:
    """Write the tickets of this start and tell where they are; where this machine's ranks meet the others."""
    evidence = run_dir.evidence.read_bytes()
    tell(machines.write_tickets(home, run_dir, job, others, start.ranks, start.nonce, evidence), job)
    return others.rendezvous(0, start.ranks, start.nonce)


def _resumable(row: RunRow, obstacle: BaseException) -> ApplianceError:
    """The error for a run that can go on once what stopped it is gone; its own class, so its own exit status."""
    kind = type(obstacle) if isinstance(obstacle, ApplianceError) else Interrupted
    what = obstacle.message if isinstance(obstacle, ApplianceError) else "interrupted"
    hint = f"go on with `appliance train resume {row.id}`, or settle with `appliance train abort {row.id}`"
    return kind(f"run {row.id}: {what}; the reservation stands", hint=hint)


def _open_run(ledger: Ledger, run_id: str) -> RunRow:
    row = find(ledger, run_id)
    if not row.state.open:
        raise UsageError(f"run {row.id} is {row.state}", hint="`appliance train status` shows which runs are open")
    return row


def identify(home: Home, named: str) -> str:
    """The id of the run that has this id, or that alone has this name.

    Raises:
      ArtefactMissing: there is none.
      UsageError: several runs have this name.
    """
    with home.ledger(writable=False) as ledger, ledger.read() as rows:
        runs = rows.runs.list()
    found = [row.id for row in runs if row.id == named] or [row.id for row in runs if row.name == named]
    if len(found) > 1:
        raise UsageError(f"{len(found)} runs are called {named}", hint=f"name one by its id: {', '.join(found)}")
    if not found:
        raise ArtefactMissing(f"no run {named}", hint="`appliance train status` lists the runs")
    return found[0]


def find(ledger: Ledger, run_id: str) -> RunRow:
    """The run with this id; `ArtefactMissing` if there is none."""
    with ledger.read() as rows:
        row = rows.runs.find(run_id)
    if row is None:
        raise ArtefactMissing(f"no run {run_id}", hint="`appliance train status` lists the runs")
    return row


def _mark_started(
    home: Home, ledger: Ledger, actor: Actor, row: RunRow, ranks: int, others: Machines | None
) -> tuple[RunRow, _Start]:
    """Record and sign that so many workers are about to start, and leave them the evidence for the key agent."""
    run_dir = home.run(row.id)
    plan_sha256 = hashlib.sha256(to_json(plan_of(row))).hexdigest()
    first = row.state == RunState.RESERVED
    if first:
        journal.Journal.open(run_dir.journal, row.id, plan_sha256).close()
    state = journal.read(run_dir.journal, row.id)
    if state is None or not undamaged(run_dir, row):
        broken = IntegrityError(f"the journal or the job of run {row.id} was altered; it is charged in full")
        settle(home, ledger, actor, row, broken)
        raise broken
    left = max(0, row.reserved_attempts - state.attempts)
    nonce = secrets.token_hex(16)
    several = {"ranks": ranks * others.count, **others.facts()} if others else {"ranks": ranks}
    kind = RunStarted if first else RunResumed
    started = kind(run_id=row.id, dataset_id=row.dataset_id, attempts_left=left, nonce=nonce, **several)
    with ledger.transaction(actor, policy_sha256=row.policy_sha256) as tx:
        tx.runs.update(
            row.id, state=RunState.RUNNING, recorded_attempts=state.attempts, recorded_head=state.head_sha256
        )
        index = tx.append(started)
    ledger.sign()
    write_atomic(run_dir.evidence, evidence_for(ledger.prove(index), ledger.leaf(index)))
    return find(ledger, row.id), _Start(ranks, nonce)


class _Follower:
    """Reads the journal while the worker writes it: shows progress, and from time to time tells the ledger its head."""

    def __init__(self, ledger: Ledger, actor: Actor, row: RunRow, path: Path, watch: Watch) -> None:
        self.ledger, self.actor, self.row, self.path, self.watch = ledger, actor, row, path, watch
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
        with self.ledger.transaction(self.actor, policy_sha256=self.row.policy_sha256) as tx:
            tx.runs.update(self.row.id, recorded_attempts=state.attempts, recorded_head=state.head_sha256)
            journal_sha256 = state.head_sha256
            tx.append(RunCheckpointed(run_id=self.row.id, attempts=state.attempts, journal_sha256=journal_sha256))
        self.row = find(self.ledger, self.row.id)


def abort(home: Home, run_id: str, operator: Operator, *, wait_s: float = 30.0) -> RunRow:
    """End a run for good and charge the attempts it made. A live supervisor is interrupted first.

    A run that comes to its own end before it can be interrupted is returned as it ended.

    Raises:
      UsageError: the run has ended already.
      Busy: the supervisor did not end in time.
    """
    run_dir = home.run(run_id)
    with home.ledger(writable=False) as ledger:
        _open_run(ledger, run_id)
    tell_at = time.monotonic()
    deadline = tell_at + wait_s
    while (pid := launch.supervisor_of(run_dir)) is not None:
        if time.monotonic() > deadline:
            raise Busy(f"the supervisor of {run_id} (process {pid}) does not end")
        if time.monotonic() >= tell_at:  # not at once again: a second one would be raised in the middle of its ending
            os.kill(pid, signal.SIGINT)
            tell_at += wait_s / 3
        time.sleep(0.1)
    run_dir.path.mkdir(mode=0o700, exist_ok=True)
    with home.ledger() as ledger, launch.supervising(run_dir):
        row = find(ledger, run_id)
        return settle(home, ledger, home.actor(operator), row, None) if row.state.open else row


def status(home: Home) -> list[tuple[RunRow, Step, bool]]:
    """`train status`: every run, its public progress, and whether a supervisor is alive."""
    with home.ledger(writable=False) as ledger, ledger.read() as rows:
        runs = list(rows.runs.list())
    return [(row, progress_of(home, row), launch.supervisor_of(home.run(row.id)) is not None) for row in runs]


def progress_of(home: Home, row: RunRow) -> Step:
    """Public progress of a run, from its journal."""
    state = journal.read(home.run(row.id).journal, row.id)
    attempts, steps = (state.attempts, state.steps) if state else (row.charged_attempts or 0, 0)
    return Step(run_id=row.id, attempts=attempts, steps=steps, plan=plan_of(row))
