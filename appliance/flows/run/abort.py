"""`train abort`: end a run for good, and charge what it attempted."""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack, suppress

from appliance.errors import Busy
from appliance.files import locked
from appliance.flows import launch
from appliance.flows.catalog import find_run
from appliance.flows.desk import Desk
from appliance.flows.home import Home, Operator
from appliance.flows.run.settle import settle
from appliance.flows.run.train import find_open_run
from appliance.jobs.rundir import RunDir
from appliance.ledger.rows import RunRow


def abort(home: Home, run_id: str, operator: Operator, *, wait_s: float = 30.0) -> RunRow:
    """End a run for good and charge the attempts it made. A live supervisor is interrupted first, and who follows it.

    A run that comes to its own end before it can be interrupted, or that is aborted twice at once, is returned as it
    ended.

    Raises:
      UsageError: the run has ended already.
      Busy: the supervisor did not end in time.
    """
    run_dir = home.run(run_id)
    with home.reader() as ledger:
        find_open_run(ledger, run_id)
    run_dir.path.mkdir(mode=0o700, exist_ok=True)
    with locked(run_dir.path), Desk.open(home, operator) as desk, ExitStack() as supervised:  # one after the other
        _take_over(run_dir, wait_s, supervised)
        row = find_run(desk.ledger, run_id)
        return settle(desk, row, None) if row.state.open else row


def _take_over(run_dir: RunDir, wait_s: float, supervised: ExitStack) -> None:
    """Supervise a run in the place of its supervisor, and of whoever is faster than this process to follow it."""
    deadline = time.monotonic() + wait_s
    while True:
        end_supervisor(run_dir, wait_s)
        try:
            return supervised.enter_context(launch.supervising(run_dir))
        except Busy:
            if time.monotonic() > deadline:
                raise


def end_supervisor(run_dir: RunDir, wait_s: float) -> None:
    """Interrupt the supervisor of a run, if there is one, and wait until it has ended. Raises `Busy` if it does not."""
    tell_at = time.monotonic()
    deadline = tell_at + wait_s
    while (pid := launch.supervisor_of(run_dir)) is not None:
        if time.monotonic() > deadline:
            raise Busy(f"the supervisor of {run_dir.name} (process {pid}) does not end")
        if time.monotonic() >= tell_at:  # not at once again: a second one would be raised in the middle of its ending
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(pid, signal.SIGINT)
            tell_at += wait_s / 3
        time.sleep(0.1)
