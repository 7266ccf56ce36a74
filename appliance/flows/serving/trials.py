"""`serve drill` and `serve bench`: a gateway of its own, faults or measured load, and an entry of what was seen."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from pydantic import ValidationError

from appliance.errors import GateFailed, IntegrityError, PolicyDenied, ServingDegraded, UsageError
from appliance.events.serving import ServingDrilled, ServingMeasured, ServingRefused
from appliance.flows.desk import Desk
from appliance.flows.home import Home, Operator
from appliance.flows.passing import passing_directory
from appliance.flows.serving import gateway
from appliance.flows.serving.start import Listening, Wanted, prepare
from appliance.jobs.job import Job
from appliance.jobs.rundir import RunDir
from appliance.jobs.serve import ServeJob
from appliance.jobs.trials import BenchJob, BenchResult, DrillJob, DrillResult
from appliance.values import Value, decimal

R = TypeVar("R", bound=Value)
POLL_S = 0.2


def drill(
    home: Home, run_id: str, wanted: tuple[Wanted, ...], listening: Listening, load: tuple[int, float], by: Operator
) -> DrillResult:
    """Make the engines of a run's model fail under load.

    Args:
      home: the home.
      run_id: the run.
      wanted: two engines.
      listening: timeouts; where it says to listen is not used.
      load: requests in all, and in a second.
      by: who drills.

    Raises:
      UsageError: there is only one engine.
      PolicyDenied: as for `serve start`.
      ServingDegraded: no engine became well.
    """
    if len(wanted) < 2:
        raise UsageError("a drill needs a fallback", hint="name one with --fallback")
    with _prepared(home, run_id, wanted, listening, by) as (desk, serve, run_dir):
        job = DrillJob(run_id=run_id, serve=serve, requests=load[0], rate=load[1])
        _require_time(job)
        result = _run(run_dir, job, DrillResult)
        desk.record(_drilled(job, result))
    return result


def bench(
    home: Home,
    run_id: str,
    wanted: tuple[Wanted, ...],
    listening: Listening,
    load: Callable[[ServeJob], BenchJob],
    by: Operator,
) -> BenchResult:
    """Measure a run's model under requests that come at random. Raises as `drill` does."""
    with _prepared(home, run_id, wanted, listening, by) as (desk, serve, run_dir):
        job = load(serve)
        result = _run(run_dir, job, BenchResult)
        desk.record(_measured(job, result))
    return result


def _require_time(job: DrillJob) -> None:
    """Raise `UsageError` for a drill whose faults would be over before they can be noticed."""
    least = 2 * job.serve.health.first_token_s
    if job.fault_s < least:
        enough = math.ceil(job.requests * least / job.fault_s)
        hint = f"give --requests {enough}, a lower --rate or a shorter --first-token"
        raise UsageError(f"each fault would last {job.fault_s:.1f} s, and takes {least:.1f} s to be noticed", hint=hint)


@contextmanager
def _prepared(
    home: Home, run_id: str, wanted: tuple[Wanted, ...], listening: Listening, by: Operator
) -> Iterator[tuple[Desk, ServeJob, RunDir]]:
    """Check that the model may be served, and make a directory for the trial that vanishes afterwards."""
    gateway.require_gateway()
    with Desk.open(home, by) as desk:
        with desk.refusals(ServingRefused, PolicyDenied, GateFailed, IntegrityError):
            _, serve, _ = prepare(desk.ledger, home, run_id, wanted, listening)
        with passing_directory(home, "trial") as run_dir:
            yield desk, serve, run_dir


def _run(run_dir: RunDir, job: Job, kind: type[R]) -> R:
    run_dir.write_job(job)
    with gateway.running(run_dir) as process:
        while process.poll() is None:
            time.sleep(POLL_S)
    failure = gateway.failure(run_dir)
    if failure is not None:
        raise failure
    try:
        return kind.model_validate_json(run_dir.result.read_bytes())
    except (FileNotFoundError, ValidationError):
        raise ServingDegraded("the trial ended without a result") from None


def _drilled(job: DrillJob, result: DrillResult) -> ServingDrilled:
    names = ("requests", "answered", "degraded", "cut", "lost", "unlabelled")
    sums = {name: sum(getattr(fault, name) for fault in result.faults) for name in names}
    return ServingDrilled(
        run_id=job.run_id,
        engines=[f"{spec.name} {spec.kind}" for spec in job.serve.engines],
        faults=[fault.fault for fault in result.faults],
        came_back=all(fault.came_back for fault in result.faults),
        failover_p50_ms=decimal(result.failover_p50_ms),
        failover_p99_ms=decimal(result.failover_p99_ms),
        detection_max_ms=decimal(result.detection_max_ms),
        first_token_s=decimal(job.serve.health.first_token_s),
        **sums,
    )


def _measured(job: BenchJob, result: BenchResult) -> ServingMeasured:
    return ServingMeasured(
        run_id=job.run_id,
        engines=[f"{spec.name} {spec.kind}" for spec in job.serve.engines],
        requests=result.requests,
        failed=result.failed,
        rate=decimal(job.rate),
        first_token_p50=decimal(result.first_token.p50),
        first_token_p99=decimal(result.first_token.p99),
        per_token_p50=decimal(result.per_token.p50),
        whole_p50=decimal(result.whole.p50),
        whole_p99=decimal(result.whole.p99),
        tokens_per_s=decimal(result.tokens_per_s),
        littles_residual=decimal(result.littles_residual),
        harness_overhead=decimal(result.harness_overhead),
    )
