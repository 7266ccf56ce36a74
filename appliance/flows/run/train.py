"""`train start` (once reserved) and `train resume`: launch, follow, settle.

    reserve.py: refuse or reserve the worst case -> selftest.py: the engine, without data or key
    -> here: started leaf, signed -> worker -> settle.py: by attempts

The reservation is signed and anchored before the worker exists, and the key agent releases the dataset's key only
against the signed `run.started` leaf. Whatever is killed, the reservation stands until `settle` charges the attempts.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from appliance.errors import (
    ApplianceError,
    Busy,
    IntegrityError,
    Interrupted,
    KeyUnavailable,
    UsageError,
    WillNotFit,
)
from appliance.files import write_atomic
from appliance.flows import launch
from appliance.flows.catalog import find_run
from appliance.flows.desk import Desk
from appliance.flows.home import Home, Operator
from appliance.flows.key import require_unsealed
from appliance.flows.run import partners, selftest
from appliance.flows.run.following import Follower, Watch
from appliance.flows.run.partners import Partners
from appliance.flows.run.settle import settle
from appliance.flows.run.starting import Start, mark_started, require_afforded
from appliance.jobs import permits
from appliance.jobs.rundir import RunDir
from appliance.jobs.ticket import Rendezvous
from appliance.jobs.train import TrainJob, TrainResult
from appliance.ledger.reading import LedgerReader
from appliance.ledger.rows import RunRow

Tell = Callable[[list[Path], TrainJob], None]


def resume(
    home: Home,
    run_id: str,
    operator: Operator,
    watch: Watch,
    *,
    nproc: int | None = None,
    others: Partners | None = None,
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
      BudgetExceeded: it was reserved under an earlier rule, and the present one does not admit it.
      Busy: the run is being supervised already.
      Interrupted: it was interrupted again, and can be resumed again.
      ApplianceError: the worker's refusal; the run is settled as failed.
    """
    run_dir = home.run(run_id)
    with Desk.open(home, operator) as desk:
        row = find_open_run(desk.ledger, run_id)
        require_unsealed(home)
        with launch.supervising(run_dir):
            row = find_open_run(desk.ledger, run_id)  # another process may have gone on with it until now
            require_afforded(desk, row)
            job = _reserved_job(desk, row)
            if others:
                _require_network(job, row, others)
            _self_test(desk, row)
            row, start = mark_started(desk, row, nproc or job.engine.nproc, others)
            with permits.opened() as ends:
                follower = Follower(desk, row, watch, ends)
                try:
                    write_atomic(run_dir.evidence, desk.prove(start.entry))
                    rendezvous = _invite(home, run_dir, job, start, others, tell) if others else None
                    result = launch.run_worker(
                        run_dir,
                        TrainResult,
                        watch=follower.poll,
                        ranks=start.ranks,
                        rendezvous=rendezvous,
                        pipes=ends,
                    )
                except (KeyboardInterrupt, Interrupted, WillNotFit, KeyUnavailable, Busy) as obstacle:
                    follower.finish()
                    raise _resumable(row, obstacle) from None
                except ApplianceError as failure:
                    settle(desk, follower.row, failure, asked=ends.asked())
                    raise
                return settle(desk, follower.row, result, asked=ends.asked())


def _self_test(desk: Desk, row: RunRow) -> None:
    """See the engine pass its self-test before anything could release a key; a run whose engine fails ends here."""
    try:
        selftest.ensure(desk, row)
    except (KeyboardInterrupt, Interrupted, WillNotFit, Busy) as obstacle:
        raise _resumable(row, obstacle) from None
    except ApplianceError as failure:
        settle(desk, row, failure)
        raise


def _reserved_job(desk: Desk, row: RunRow) -> TrainJob:
    """Read the job that was reserved; a run whose job was altered ends here."""
    try:
        return desk.home.run(row.id).reserved_job(TrainJob, row.spec_sha256)
    except IntegrityError:
        broken = IntegrityError(f"the journal or the job of run {row.id} was altered; it is charged in full")
        settle(desk, row, broken)
        raise broken from None


def _require_network(job: TrainJob, row: RunRow, others: Partners) -> None:
    """Refuse a network that the ranks would refuse, while nothing is marked as started."""
    try:
        partners.require_network(job.isolation, others)
    except ApplianceError as obstacle:
        refusal = _resumable(row, obstacle)
        refusal.hint = f"{obstacle.hint}; then {refusal.hint}"
        raise refusal from None


def _invite(home: Home, run_dir: RunDir, job: TrainJob, start: Start, others: Partners, tell: Tell) -> Rendezvous:
    """Write the tickets of this start and tell where they are; where this machine's ranks meet the others."""
    evidence = run_dir.evidence.read_bytes()
    tell(partners.write_tickets(home, run_dir, job, others, start.ranks, start.nonce, evidence), job)
    return others.rendezvous(0, start.ranks, start.nonce)


def _resumable(row: RunRow, obstacle: BaseException) -> ApplianceError:
    """Make the error for a run that can go on once what stopped it is gone; its own class, so its own exit status."""
    kind = type(obstacle) if isinstance(obstacle, ApplianceError) else Interrupted
    what = obstacle.message if isinstance(obstacle, ApplianceError) else "interrupted"
    hint = f"go on with `appliance train resume {row.id}`, or settle with `appliance train abort {row.id}`"
    return kind(f"run {row.id}: {what}; the reservation stands", hint=hint)


def find_open_run(ledger: LedgerReader, run_id: str) -> RunRow:
    """Find a run that has not ended. Raises `ArtefactMissing`, or `UsageError` for one that has."""
    row = find_run(ledger, run_id)
    require_open(row)
    return row


def require_open(row: RunRow) -> None:
    """Raise `UsageError` for a run that has ended."""
    if not row.state.open:
        raise UsageError(f"run {row.id} is {row.state}", hint="`appliance train status` shows which runs are open")
