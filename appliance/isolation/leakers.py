"""Planted leakers: do what an attacker in the worker would do, and see whether anything gets out.

`python -m appliance.isolation.leakers` prints {leaker: "blocked" | "leaked"} as JSON; with `--control` it runs the
same leakers without the sandbox, which must leak wherever the machine itself allows it. Everything stays on this
machine: the targets are planted on loopback and in a temporary directory.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from appliance.errors import IsolationViolated
from appliance.isolation import gpu as gpus
from appliance.isolation import interpreter, loopback, sandbox
from appliance.isolation.leaks import LEAKERS, SECONDS_EACH, Plan
from appliance.isolation.targets import Targets
from appliance.jobs.job import IsolationSpec

_MODULE = "appliance.isolation.leakers"


def run_leakers(*, sandboxed: bool = True, rank: bool = False, gpu: bool = False) -> dict[str, str]:
    """Plant targets, run every leaker in a process of its own, and look what arrived.

    Args:
      sandboxed: False is the control.
      rank: the sandbox of one of several ranks, in a network namespace of its own.
      gpu: the sandbox of a job on a GPU; its driver runs where there is one.

    Returns:
      For each leaker "leaked" when its token arrived at the target or it was let through, otherwise "blocked".

    Raises:
      IsolationViolated: the sandbox could not be entered, or the leakers did not run.
    """
    with tempfile.TemporaryDirectory(prefix="leakers-") as directory, Targets(Path(directory)) as targets:
        how = "--rank" if rank else "--inside" if sandboxed else "--unhindered"
        plan = targets.plan() | {"tcp": rank, "gpu": gpu, "gpus": [str(path) for path in gpus.gpu(None).devices]}
        try:
            done = subprocess.run(
                interpreter.module(_MODULE, how, json.dumps(plan)),
                capture_output=True,
                timeout=SECONDS_EACH * len(LEAKERS) + 30,
                check=False,
                cwd=interpreter.DIRECTORY,
                env={**os.environ, "RES_OPTIONS": "timeout:1 attempts:1"},
            )
            through: dict[str, bool] = json.loads(done.stdout)
        except (json.JSONDecodeError, subprocess.TimeoutExpired):
            raise IsolationViolated("the planted leakers could not be run in the sandbox") from None
        arrived = targets.find_arrived()
    return {name: "leaked" if through[name] or name in arrived else "blocked" for name in through}


def _run_each(plan: Plan, enter: Callable[[], None]) -> dict[str, bool]:
    """Run every leaker in a fork that has entered the sandbox; True for what got through.

    Where a GPU's driver starts on the way in, it is entered once: the rules of a job on a GPU let it fork.
    """
    if plan["gpu"]:
        enter()
        enter = _stay
    else:
        _can_enter(enter)
    return {name: _alone(partial(leaker, plan), enter) for name, leaker in LEAKERS.items()}


def _stay() -> None:
    """Enter nothing."""


def _can_enter(enter: Callable[[], None]) -> None:
    """Raise `IsolationViolated` if the sandbox cannot be entered: leakers that do not run have not been blocked."""
    if not _alone(lambda: True, enter):
        raise IsolationViolated("the sandbox cannot be entered")


def _alone(leaker: Callable[[], bool], enter: Callable[[], None]) -> bool:
    """Run one leaker in a fork: whatever kills it stops only itself. True if it got through."""
    child = os.fork()
    if child == 0:
        signal.alarm(SECONDS_EACH)
        try:
            enter()
            os._exit(0 if leaker() else 1)
        except BaseException:  # noqa: BLE001 - a leaker that fails, however it fails, has not leaked
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def _enter(plan: Plan, *, ranks: bool) -> None:
    write = [Path(plan["inside"]), Path("/dev/null")]
    gpu = _gpu() if plan["gpu"] else None
    sandbox.enter(IsolationSpec(), read=sandbox.system_paths(), write=write, ranks=ranks, gpu=gpu)


def _gpu() -> gpus.Gpu:
    """Find what a job on a GPU gets; without one the rules are in force, and there is no driver to start."""
    found = gpus.gpu()
    return found if gpus.nodes() else replace(found, ordinal=None)


def main(arguments: list[str]) -> None:
    """Run this module: to test (no argument, --gpu or --control), or as the process of the leakers."""
    if arguments and arguments[0] == "--rank":  # the launcher of the ranks, and then a rank
        loopback.enter()
        command = interpreter.module(_MODULE, "--inside-rank", arguments[1])
        os.execv(command[0], command)  # noqa: S606 - itself, as a rank is started
    if arguments and arguments[0] in ("--inside", "--inside-rank", "--unhindered"):
        plan: Plan = json.loads(arguments[1])
        enter = partial(_enter, plan, ranks=arguments[0] == "--inside-rank")
        result: dict[str, Any] = _run_each(plan, _stay if arguments[0] == "--unhindered" else enter)
    else:
        result = dict(run_leakers(sandboxed="--control" not in arguments, gpu="--gpu" in arguments))
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
