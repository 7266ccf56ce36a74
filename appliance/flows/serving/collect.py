"""From the spool to the ledger: every degraded answer once, whatever was killed in between.

The lines of a spool are numbered. The ledger's newest entry of a serving says up to which one it has them, so nothing
else has to be remembered. A serving's directory is removed when its end is in the ledger.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from typing import Literal

from pydantic import ValidationError

from appliance.errors import Busy, IntegrityError
from appliance.events.serving import DegradedFacts, ServingDegraded, ServingEnded
from appliance.flows import launch
from appliance.flows.desk import Desk
from appliance.jobs.rundir import RunDir
from appliance.jobs.serve import SPOOL, STATE, Degraded, GatewayState, ServeJob
from appliance.ledger.reading import LedgerReader

AT_ONCE = 100
"""Degraded answers in one entry."""
NOTHING = GatewayState(
    address="", engines=(), answered=0, degraded=0, cut=0, lost=0, refused=0, left=0, busy_s=0.0
)  # fmt: skip


def collect(desk: Desk, run_dir: RunDir, job: ServeJob) -> int:
    """Record the lines of a spool that the ledger does not have; how many."""
    new = _read(run_dir)[_collected(desk.ledger, job.serving_id) :]
    if not new:
        return 0
    with desk.transact() as tx:
        for begin in range(0, len(new), AT_ONCE):
            lines = new[begin : begin + AT_ONCE]
            answers = [_facts(line) for line in lines]
            tx.append(
                ServingDegraded(serving_id=job.serving_id, run_id=job.run_id, first=lines[0].number, answers=answers)
            )
    return len(new)


def end(desk: Desk, run_dir: RunDir, job: ServeJob, ended: Literal["stopped", "failed", "killed"]) -> ServingEnded:
    """Record what is left of a spool, and that the serving ended; its directory is removed."""
    collect(desk, run_dir, job)
    last = _last_state(run_dir)
    numbers = last.model_dump(include={"answered", "degraded", "cut", "lost", "refused", "left"})
    event = ServingEnded(serving_id=job.serving_id, run_id=job.run_id, ended=ended, **numbers)
    desk.record(event)
    shutil.rmtree(run_dir.path)
    return event


def settle(desk: Desk) -> list[ServingEnded]:
    """End the servings whose supervisor is gone."""
    found = []
    for path in sorted(desk.home.servings.iterdir()) if desk.home.servings.is_dir() else ():
        run_dir = RunDir(path)
        with suppress(Busy), launch.supervising(run_dir):
            found += _settle_one(desk, run_dir)
    return found


def _settle_one(desk: Desk, run_dir: RunDir) -> list[ServingEnded]:
    try:
        job = ServeJob.model_validate_json(run_dir.job.read_bytes())
    except (FileNotFoundError, ValidationError):  # killed before there was anything to serve
        shutil.rmtree(run_dir.path)
        return []
    return [end(desk, run_dir, job, "killed")]


def _collected(ledger: LedgerReader, serving_id: str) -> int:
    """Say how many lines of a spool the ledger has."""
    newest = next(ledger.entries(ServingDegraded, subject=serving_id, newest_first=True, limit=1), None)
    if newest is None:
        return 0
    fact = ServingDegraded.of(newest.leaf["facts"])
    return fact.first + len(fact.answers)


def _read(run_dir: RunDir) -> list[Degraded]:
    """Read the whole lines of a spool. Raises `IntegrityError` where one is not what the gateway writes."""
    path = run_dir.path / SPOOL
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
        found = [Degraded.model_validate_json(line) for line in lines]
    except FileNotFoundError:
        return []
    except ValidationError:
        raise IntegrityError("the spool is damaged", where=str(path)) from None
    if [line.number for line in found] != list(range(len(found))):
        raise IntegrityError("lines of the spool are missing", where=str(path))
    return found


def _facts(line: Degraded) -> DegradedFacts:
    return DegradedFacts(
        id=line.id, at=line.at, reason=line.reason, engine=line.engine, failed=list(line.failed)
    )  # fmt: skip


def _last_state(run_dir: RunDir) -> GatewayState:
    """Read what the gateway said at its end, or last."""
    for path in (run_dir.result, run_dir.path / STATE):
        with suppress(FileNotFoundError, ValidationError):
            return GatewayState.model_validate_json(path.read_bytes())
    return NOTHING
