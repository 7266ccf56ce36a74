"""A drill: engines are killed, stopped, garbled, slowed and cut while requests come, and every answer is accounted for.

For each fault: both engines are well; requests come at a steady rate; after a sixth of them the fault begins, after
two thirds it ends. Every second request wants a stream.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

from appliance.files import write_atomic
from appliance.isolation import interpreter
from appliance.jobs.rundir import RunDir
from appliance.jobs.serve import EngineSpec
from appliance.jobs.trials import FAULT_BEGINS, FAULT_ENDS, FAULTS, DrillJob, DrillResult, FaultOutcome
from appliance.serve.load import Gateway, Seen, send_all
from appliance.serve.subject import Subject, serving
from appliance.values import to_json

BACK_S = 120.0


def run(job: DrillJob, run_dir: RunDir) -> DrillResult:
    """Drill. Raises `ServingDegraded` where there is nothing to drill."""
    return asyncio.run(_drill(job, run_dir))


async def _drill(job: DrillJob, run_dir: RunDir) -> DrillResult:
    engines = tuple(_faulty(spec, run_dir) for spec in job.serve.engines)
    names = {spec.name for spec in engines}
    faults = [fault for fault in FAULTS if fault.split()[0] in names]
    every, outcomes, number = [], [], 0
    async with serving(job.serve.model_copy(update={"engines": engines}), run_dir) as subject:
        for place, fault in enumerate(faults):
            count = job.requests * (place + 1) // len(faults) - number
            number += count
            seen, came_back = await _one(job, subject, run_dir, fault, count)
            outcomes.append(_outcome(fault, seen, came_back))
            every += seen
        state = subject.state()
    return _sum_up(job, outcomes, every, sum(engine.opened for engine in state.engines) if state else 0)


def _faulty(spec: EngineSpec, run_dir: RunDir) -> EngineSpec:
    """Put the proxy before an engine."""
    control = str(_control(run_dir, spec.name))
    words = interpreter.module("appliance.serve.faulty", control, "{socket}", to_json(spec).decode().strip())
    return spec.model_copy(update={"kind": "command", "command": tuple(words)})


def _control(run_dir: RunDir, name: str) -> Path:
    return run_dir.path / f"{name}.fault"


async def _one(job: DrillJob, subject: Subject, run_dir: RunDir, fault: str, count: int) -> tuple[list[Seen], bool]:
    """Let one fault happen under load; what became of the requests, and whether all was well again."""
    state = subject.state()
    assert state is not None  # noqa: S101 - it served a moment ago
    body = {"model": job.serve.model, "prompt": "once upon a time", "max_tokens": job.answer_tokens}
    bodies = [body | {"stream": number % 2 == 0} for number in range(count)]
    begin = time.monotonic() + 0.1
    due = [begin + number / job.rate for number in range(count)]
    faulting = asyncio.create_task(_inject(subject, run_dir, fault, begin, count / job.rate))
    seen = await send_all(Gateway(address=state.address, key=subject.key), due, bodies)
    await faulting
    return seen, await subject.all_well(BACK_S) is not None


async def _inject(subject: Subject, run_dir: RunDir, fault: str, begin: float, seconds: float) -> None:
    name, what = fault.split()
    await asyncio.sleep(max(0.0, begin + FAULT_BEGINS * seconds - time.monotonic()))
    pid = _pid(subject, name)
    if what in ("kill", "stop"):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL if what == "kill" else signal.SIGSTOP)
    else:
        write_atomic(_control(run_dir, name), what.encode())
    await asyncio.sleep(max(0.0, begin + FAULT_ENDS * seconds - time.monotonic()))
    if what == "stop":
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    _control(run_dir, name).unlink(missing_ok=True)


def _pid(subject: Subject, name: str) -> int:
    state = subject.state()
    return next(engine.pid for engine in state.engines if engine.name == name) if state else 0


def _outcome(fault: str, seen: list[Seen], came_back: bool) -> FaultOutcome:
    counts = {name: sum(one.outcome == name for one in seen) for name in ("answered", "cut", "unlabelled")}
    lost = sum(one.outcome in ("lost", "refused") for one in seen)
    degraded = sum(one.outcome == "answered" and one.degraded != "" for one in seen)
    return FaultOutcome(
        fault=fault, requests=len(seen), degraded=degraded, lost=lost, came_back=came_back, **counts
    )  # fmt: skip


def _sum_up(job: DrillJob, outcomes: list[FaultOutcome], seen: list[Seen], opened: int) -> DrillResult:
    """Sum up. Failover is timed where the first token can be seen: in streams."""
    over = [one for one in seen if one.degraded and one.outcome == "answered"]
    allowed = job.serve.health.first_token_s
    took = [1000 * (one.first - one.sent - min(one.detected_s, allowed)) for one in over if one.first] or [0.0]
    return DrillResult(
        faults=tuple(outcomes),
        failovers=len(over),
        failover_p50_ms=round(float(np.percentile(took, 50)), 1),
        failover_p99_ms=round(float(np.percentile(took, 99)), 1),
        detection_max_ms=round(1000 * max((one.detected_s for one in over), default=0.0), 1),
        opened=opened,
    )
