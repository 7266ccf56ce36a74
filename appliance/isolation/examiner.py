"""Runs code that a model wrote against tests: `python -m appliance.isolation.examiner`, tasks in, verdicts out.

For each task two processes are forked and sandboxed: no network, no new process, no file written, little memory, little
time. One has the code, the other the test; the test calls the code through a pipe of data (`isolation.answers`). Only
the other can say that the test was passed, so code that patches whatever it finds patches its own process. Nothing is
written to a file: code arrives in a message and is gone with its process.
"""

from __future__ import annotations

import builtins
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, Literal, NoReturn

from appliance.errors import ApplianceError, Interrupted
from appliance.isolation import answers, kernel, process, sandbox
from appliance.jobs.exchange import Exchanged
from appliance.jobs.job import IsolationSpec
from appliance.values import Value

SECONDS = 5.0
MEMORY = 1 << 30
_PASSED = b"passed"
_NOT_SANDBOXED = 97  # exit status


class Task(Value):
    """Code and the test of it.

    Attributes:
      code: what the model wrote, whole: it defines `entry_point`.
      prelude: what the test may use besides, from the benchmark and not from the model.
      test: defines `check(candidate)`.
    """

    code: str
    prelude: str
    test: str
    entry_point: str
    seconds: float = SECONDS


Verdict = Literal["passed", "failed", "too long"]


def main() -> None:
    """Examine task after task until the supervisor says null; an answer is a verdict, or false where none is safe."""
    process.harden(int(os.environ["APPLIANCE_SUPERVISOR"]))
    exchange = Exchanged.inherited()
    try:
        while (message := exchange.hear()) is not None:
            exchange.say(_examine(Task.model_validate(message)))
    except Interrupted:
        sys.exit(1)


def _examine(task: Task) -> Verdict | Literal[False]:
    asked, answered, verdict = os.pipe(), os.pipe(), os.pipe()
    every = (*asked, *answered, *verdict)
    code = _fork(lambda: _hold(task, asked[0], answered[1]), {asked[0], answered[1]})
    test = _fork(lambda: _test(task, asked[1], answered[0], verdict[1]), {asked[1], answered[0], verdict[1]})
    for descriptor in set(every) - {verdict[0]}:
        os.close(descriptor)
    try:
        said = _read_verdict(verdict[0], task.seconds)
    finally:
        os.close(verdict[0])
        ended = [_end(child) for child in (code, test)]
    if _NOT_SANDBOXED in ended:
        return False
    return "too long" if said is None else "passed" if said == _PASSED else "failed"


def _read_verdict(descriptor: int, seconds: float) -> bytes | None:
    """Read what the test says until it ends; None where its time is up first."""
    said, deadline = b"", time.monotonic() + seconds
    while True:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return None
        piece = os.read(descriptor, 64)
        if not piece:
            return said
        said += piece


def _end(child: int) -> int:
    """Kill a process and say with what status it had ended."""
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _fork(work: Callable[[], None], kept: set[int]) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        _confine(kept)
        work()
        status = 0
    except ApplianceError:
        status = _NOT_SANDBOXED
    except BaseException:  # noqa: BLE001, S110 - whatever it is, the process ends, and prints nothing
        pass
    finally:
        os._exit(status)


def _confine(kept: set[int]) -> None:
    """Keep some descriptors, little memory and time, and no way to write. Raises `ApplianceError`."""
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    nothing = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in kept:
            try:
                os.close(int(name))
            except OSError:
                continue  # that of the listing itself
    for limit, most in (
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_DATA, MEMORY),
        (resource.RLIMIT_CPU, int(SECONDS) * 2),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_NPROC, 0),
    ):
        resource.setrlimit(limit, (most, most))
    sandbox.enter(IsolationSpec(), sandbox.system_paths(), [], read_only=True)


# --- the process that has the code ----------------------------------------------------------------------------------


def _hold(task: Task, asked: int, answered: int) -> None:
    """Run the code, then call it as often as it is asked to."""
    space: dict[str, Any] = {"__name__": "candidate"}
    exec(compile(task.code, "code", "exec"), space)  # noqa: S102 - what this process is for
    call = space[task.entry_point]
    while (line := _read_line(asked)) is not None:
        try:
            reply = b"+" + answers.describe(call(*answers.build(line)))
        except Exception as error:  # noqa: BLE001 - the test may expect it
            reply = b"-" + answers.describe(type(error).__name__)
        _write(answered, reply)


# --- the process that has the test ----------------------------------------------------------------------------------


def _test(task: Task, asks: int, answers_from: int, verdict: int) -> None:
    """Run the test. That it was passed is said at its end, and by nobody else."""

    def candidate(*arguments: Any) -> Any:
        _write(asks, answers.describe(arguments))
        line = _read_line(answers_from)
        if line is None:
            raise EOFError
        value = answers.build(line[1:])
        if line[:1] == b"+":
            return value
        _raise(value)

    space: dict[str, Any] = {"__name__": "test"}
    exec(compile(task.prelude, "prelude", "exec"), space)  # noqa: S102 - the benchmark's
    space[task.entry_point] = candidate
    exec(compile(task.test, "test", "exec"), space)  # noqa: S102
    space["check"](candidate)
    os.write(verdict, _PASSED)


def _raise(name: Any) -> NoReturn:
    kind = getattr(builtins, name, None) if isinstance(name, str) else None
    raise kind if isinstance(kind, type) and issubclass(kind, Exception) else RuntimeError


def _write(descriptor: int, line: bytes) -> None:
    view = memoryview(line + b"\n")
    while view:
        view = view[os.write(descriptor, view) :]


_rest: dict[int, bytearray] = {}


def _read_line(descriptor: int) -> bytes | None:
    """Read one line; None at the end, and for one that is too long to be an answer."""
    held = _rest.setdefault(descriptor, bytearray())
    while b"\n" not in held:
        piece = os.read(descriptor, 65536)
        if not piece or len(held) > 2 * answers.LONGEST:
            return None
        held += piece
    line, _, after = bytes(held).partition(b"\n")
    held[:] = after
    return line


if __name__ == "__main__":
    main()
