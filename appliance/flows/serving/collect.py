"""From the spool to the ledger: every degraded answer once, whatever was killed in between.

The lines of a spool are numbered. The ledger's newest entry of a serving says up to which one it has them, so nothing
else has to be remembered. A serving's directory is removed when its end is in the ledger; where its spool is damaged,
what stands before the damage is recorded, and the directory is set aside and stays.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from appliance.errors import Busy, IntegrityError
from appliance.events.serving import DegradedFacts, ServingDegraded, ServingEnded, ServingStarted
from appliance.files import fsync_directory, make_directory
from appliance.flows import launch
from appliance.flows.desk import Desk
from appliance.jobs.rundir import RunDir
from appliance.jobs.serve import SPOOL, STATE, Degraded, GatewayState
from appliance.ledger.reading import LedgerReader

AT_ONCE = 100
"""Degraded answers in one entry."""
NOTHING = GatewayState(
    address="", engines=(), answered=0, degraded=0, cut=0, lost=0, refused=0, left=0, busy_s=0.0
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Spooled:
    """What a spool holds.

    Attributes:
      lines: from the first one, as long as they are what the gateway writes.
      rest: what follows: while the gateway runs, perhaps the beginning of a line.
      sha256: of the whole.
    """

    lines: list[Degraded]
    rest: bytes
    sha256: str


def collect(desk: Desk, run_dir: RunDir, run_id: str) -> None:
    """Record the lines of the spool of a gateway that runs, as far as the ledger does not have them.

    Raises:
      IntegrityError: a line is not what the gateway writes; those before it are recorded.
    """
    spooled = _read(run_dir)
    _record(desk, run_dir, run_id, spooled.lines)
    if b"\n" in spooled.rest:
        raise damaged(desk, run_dir)


def damaged(desk: Desk, run_dir: RunDir) -> IntegrityError:
    """Make the error of a damaged spool; it says where it is kept."""
    return IntegrityError("the spool of degraded answers was altered", where=str(desk.home.set_aside / run_dir.name))


def end(desk: Desk, run_dir: RunDir, run_id: str, ended: Literal["stopped", "failed", "killed"]) -> ServingEnded:
    """Record what is left of a spool, and that the serving ended; its directory is removed, or set aside if damaged."""
    spooled, last = _read(run_dir), _last_state(run_dir)
    _record(desk, run_dir, run_id, spooled.lines)
    stated: dict[str, Any] = last.model_dump(include={"answered", "degraded", "cut", "lost", "refused", "left"})
    if spooled.rest:
        stated |= {"damaged_line": len(spooled.lines), "damaged_sha256": spooled.sha256}
    event = ServingEnded(serving_id=run_dir.name, run_id=run_id, ended=ended, **stated)
    desk.record(event)
    _clear(desk, run_dir, event)
    return event


def settle(desk: Desk) -> list[ServingEnded]:
    """End the servings whose supervisor is gone. What else lies beside them is left alone.

    Whoever makes or removes such a directory, or calls this, holds the lock of the directory above it.
    """
    found = []
    for path in sorted(desk.home.servings.glob("serving_*")):
        run_dir = RunDir(path)
        with suppress(Busy, NotADirectoryError), launch.supervising(run_dir):
            found += _settle_one(desk, run_dir)
    return found


def _settle_one(desk: Desk, run_dir: RunDir) -> list[ServingEnded]:
    started = next(desk.ledger.entries(ServingStarted, subject=run_dir.name, limit=1), None)
    if started is None:  # killed before there was anything to serve
        shutil.rmtree(run_dir.path)
        return []
    ended = next(desk.ledger.entries(ServingEnded, subject=run_dir.name, limit=1), None)
    if ended is not None:  # killed before its directory was cleared
        _clear(desk, run_dir, ServingEnded.of(ended.leaf["facts"]))
        return []
    return [end(desk, run_dir, ServingStarted.of(started.leaf["facts"]).run_id, "killed")]


def _clear(desk: Desk, run_dir: RunDir, ended: ServingEnded) -> None:
    """Remove the directory of a serving that ended, or set it aside."""
    if not ended.damaged_sha256:
        shutil.rmtree(run_dir.path)
        return
    make_directory(desk.home.set_aside)
    os.rename(run_dir.path, desk.home.set_aside / run_dir.name)
    fsync_directory(desk.home.set_aside)
    fsync_directory(desk.home.servings)


def _record(desk: Desk, run_dir: RunDir, run_id: str, lines: list[Degraded]) -> None:
    new = lines[_collected(desk.ledger, run_dir.name) :]
    if not new:
        return
    with desk.transact() as tx:
        for begin in range(0, len(new), AT_ONCE):
            some = new[begin : begin + AT_ONCE]
            answers = [_facts(line) for line in some]
            tx.append(ServingDegraded(serving_id=run_dir.name, run_id=run_id, first=some[0].number, answers=answers))


def _collected(ledger: LedgerReader, serving_id: str) -> int:
    """Say how many lines of a spool the ledger has."""
    newest = next(ledger.entries(ServingDegraded, subject=serving_id, newest_first=True, limit=1), None)
    if newest is None:
        return 0
    fact = ServingDegraded.of(newest.leaf["facts"])
    return fact.first + len(fact.answers)


def _read(run_dir: RunDir) -> Spooled:
    """Read a spool up to the first line that is not what the gateway writes. No spool is an empty one."""
    path = run_dir.path / SPOOL
    data = path.read_bytes() if path.is_file() else b"\n" if os.path.lexists(path) else b""
    *whole, part = data.split(b"\n")
    lines: list[Degraded] = []
    with suppress(ValidationError):
        for text in whole:
            line = Degraded.model_validate_json(text)
            if line.number != len(lines):
                break
            lines.append(line)
    rest = b"\n".join([*whole[len(lines) :], part])
    return Spooled(lines, rest, hashlib.sha256(data).hexdigest())


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
