"""Code that a model wrote, judged by the tests of a benchmark in processes of their own (`isolation.examiner`)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from appliance.errors import Interrupted, IsolationViolated
from appliance.isolation import interpreter
from appliance.isolation.examiner import Task, Verdict
from appliance.jobs import exchange
from appliance.jobs.exchange import Exchange

_WAIT_S = 60.0  # for a verdict, beyond the time of the task


class Examiner:
    """A process that examines one task after the other."""

    def __init__(self, ends: Exchange, process: subprocess.Popen[bytes]) -> None:
        self._ends, self._process = ends, process

    def examine(self, task: Task) -> Verdict:
        """Judge code.

        Raises:
          IsolationViolated: it could not be run where it can do no harm, so it was not.
          Interrupted: the examiner is gone.
        """
        self._ends.say(task.model_dump())
        waited = 0.0
        while waited < _WAIT_S + task.seconds:
            for verdict in self._ends.said():
                if verdict is False:
                    raise IsolationViolated("code of a model was not run: its sandbox is not in force")
                return verdict  # type: ignore[no-any-return]
            if self._process.poll() is not None:
                break
            self._ends.wait(0.5)
            waited += 0.5
        raise Interrupted("the process that judges code has ended")


@contextmanager
def examiner() -> Iterator[Examiner]:
    """Start a process that examines code; it dies with this one."""
    with exchange.opened() as ends:
        process = subprocess.Popen(
            interpreter.module("appliance.isolation.examiner"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=interpreter.DIRECTORY,
            env={"PATH": "/usr/bin:/bin", "APPLIANCE_SUPERVISOR": str(os.getpid()), **ends.environment()},
            pass_fds=ends.inherited,
        )
        ends.hand_over()
        try:
            yield Examiner(ends, process)
        finally:
            process.kill()
            process.wait()
