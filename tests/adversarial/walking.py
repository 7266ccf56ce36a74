"""Every call of `attacks`, made in a sandbox, in a process of its own; and whether anything outside is another then.

`python -m tests.adversarial.walking SANDBOX USER DIRECTORY` prints as JSON which calls succeeded, which were refused
and with what, and which changed something outside. SANDBOX is cpu, rank, gpu or none; with none only calls are made
whose harm stays in the DIRECTORY and in the objects of this walk.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from appliance.errors import IsolationViolated
from appliance.isolation import calls, kernel, loopback, sandbox
from appliance.isolation.gpu import Gpu
from appliance.jobs.job import IsolationSpec
from tests.adversarial.attacks import NEVER_OUTSIDE, attacks, inherited
from tests.adversarial.outside import World, become, call

SECONDS = 60


def enter(kind: str, world: World) -> None:
    """Enter the sandbox of a job on the CPU, of a rank, or of a job on a GPU (there is none here: its rules alone)."""
    if kind == "none":
        return
    readable = [Path(path) for path in ("/usr", "/lib", "/lib64", "/proc", "/dev/null", "/sys/devices")]
    if kind == "rank":
        loopback.enter()
    sandbox.enter(
        IsolationSpec(files="required"),
        read=[*readable, world.root / "readable"],
        write=[world.root / "inside"],
        ranks=kind == "rank",
        gpu=Gpu(ordinal=None) if kind == "gpu" else None,
    )


def walk(kind: str, world: World) -> dict[str, dict[str, Any]]:
    """Make every call; for each: the errors it gave (0 where it succeeded), and what of the world is another now."""
    found = {}
    world.build()
    names = [*attacks(world), *(NEVER_OUTSIDE if kind != "none" else ())]
    for name in names:
        if name not in calls.numbers(kernel.machine()):
            continue
        before = world.look()
        errors = attempt(kind, world, name)
        after = world.look()
        changed = [what for what in before if before[what] != after.get(what)]
        found[name] = {"errors": errors, "changed": changed}
        if changed:
            world.build()
    return found


def attempt(kind: str, world: World, name: str) -> list[int]:
    """Make one call with all its arguments, in a child that has entered the sandbox.

    Returns:
      For each the number of the error, 0 for success, -1 for the child's death, -2 if it could not enter the sandbox.
    """
    variants = attacks(world).get(name) or [NEVER_OUTSIDE[name]]
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(SECONDS)
        try:
            become(world.user)
            inherited["queue"] = call("mq_open", world.name.encode(), os.O_RDWR | os.O_NONBLOCK, 0, None)
            inherited["process"] = call("pidfd_open", world.pid, 0)
            enter(kind, world)
            for arguments in variants:
                os.write(told, f"{_result(name, arguments)} ".encode())
        except IsolationViolated:
            os.write(told, b"-2 ")
        finally:
            os._exit(0)
    os.close(told)
    with os.fdopen(ready) as pipe:
        results = pipe.read().split(" ")[:-1]
    os.waitpid(pid, 0)
    return [int(result) for result in results] + [-1] * (len(variants) - len(results))


def _result(name: str, arguments: Sequence[Any]) -> int:
    try:
        given = [argument() if callable(argument) else argument for argument in arguments]
    except OSError as error:
        return error.errno or errno.EIO  # not even what the call would be given can be had
    try:
        call(name, *given)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def main() -> None:
    """Walk, and print what was found."""
    kind, user, directory = sys.argv[1:]
    world = World(Path(directory) / "world", int(user))
    try:
        found = walk(kind, world)
    finally:
        world.remove()
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
