"""`serve start`: serve the model of a run until the user ends it.

may it leave? -> is each model of this run? -> serving.started -> gateway -> serving.degraded ... -> serving.ended
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import GateFailed, IntegrityError, IsolationViolated, PolicyDenied, ServingDegraded, UsageError
from appliance.events.serving import EngineFacts, ServingEnded, ServingRefused, ServingStarted
from appliance.files import locked, make_directory
from appliance.flows import launch
from appliance.flows.desk import Desk
from appliance.flows.home import Home, Operator, new_id
from appliance.flows.serving import clients, collect, gateway
from appliance.flows.serving.servable import Servable, digest, find_servable, find_vouchers, weights
from appliance.jobs.rundir import RunDir
from appliance.jobs.serve import REFUSED, EngineKind, EngineSpec, GatewayState, Health, Limits, ServeJob
from appliance.ledger.reading import LedgerReader

POLL_S, COLLECT_S, STARTING_S = 0.2, 2.0, 600.0
Watch = Callable[[GatewayState], None]
Tell = Callable[[ServingEnded], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """An engine that is asked for; its command may be empty."""

    name: str
    kind: EngineKind
    model: Path
    command: tuple[str, ...] = ()
    slots: int = 4
    context: int = 2048
    threads: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """Where the gateway listens, who may connect to its socket, and its limits. Without a socket it is loopback."""

    socket: Path | None
    port: int
    for_group: bool = False
    limits: Limits
    health: Health


def start(
    home: Home,
    run_id: str,
    wanted: tuple[Wanted, ...],
    listening: Listening,
    operator: Operator,
    watch: Watch,
    tell: Tell,
) -> ServingEnded:
    """Serve until the user interrupts.

    Args:
      home: the home.
      run_id: the run whose model is served.
      wanted: engines in the order in which they are asked.
      listening: where.
      operator: who serves.
      watch: is told how the gateway is, whenever that changed.
      tell: is told of each earlier serving whose supervisor was killed, once it is ended here.

    Raises:
      IntegrityError: the model is not what the ledger says, or the spool was altered meanwhile.
      IsolationViolated: the policy requires that engines have no network, and the machine does not give that.
      PolicyDenied: the run may not leave the building, or no entry says that a model is of it.
      ServingDegraded: no engine ever became well.
      UsageError: nobody may ask.
    """
    gateway.require_gateway()
    make_directory(home.servings)
    with Desk.open(home, operator) as desk:
        with locked(home.servings):
            settled = collect.settle(desk)
        for earlier in settled:
            tell(earlier)
        with desk.refusals(ServingRefused, PolicyDenied, GateFailed, IntegrityError):
            servable, job, vouched = prepare(desk.ledger, home, run_id, wanted, listening)
        if not clients.listed(home):
            raise UsageError("no client may ask", hint="let one: `appliance serve client add NAME`")
        with _directory(home, job) as run_dir:
            desk.record(_started(home, servable, job, vouched), servable.policy_sha256)
            return _serve(desk, run_dir, job, watch)


def prepare(
    ledger: LedgerReader, home: Home, run_id: str, wanted: tuple[Wanted, ...], listening: Listening
) -> tuple[Servable, ServeJob, dict[str, int]]:
    """Check that a run may be served by these engines; nothing is written.

    Returns:
      The run, what the gateway is asked to do, and for each model's digest the entry that vouches for it.

    Raises as `start` does.
    """
    servable = find_servable(ledger, home, run_id)
    digests = {str(one.model): digest(one.model) for one in wanted}
    vouched = find_vouchers(ledger, servable, digests)
    job = ServeJob(
        run_id=run_id,
        serving_id=new_id("serving"),
        model=servable.name,
        engines=tuple(_engine(one, digests[str(one.model)]) for one in wanted),
        socket=str(listening.socket.absolute()) if listening.socket else "",
        for_group=listening.for_group,
        port=listening.port,
        clients=str(home.clients),
        limits=listening.limits,
        health=listening.health,
        isolation=servable.isolation,
    )
    return servable, job, vouched


def _engine(wanted: Wanted, sha256: str) -> EngineSpec:
    model = weights(wanted.model) if wanted.kind == "llama.cpp" else wanted.model
    return EngineSpec(
        name=wanted.name,
        kind=wanted.kind,
        model=str(model.resolve()),
        model_sha256=sha256,
        command=wanted.command,
        slots=wanted.slots,
        context=wanted.context,
        threads=wanted.threads,
    )


@contextmanager
def _directory(home: Home, job: ServeJob) -> Iterator[RunDir]:
    """Make the directory of a serving and supervise it, before another start could take it for a dead one's."""
    run_dir = RunDir(home.servings / job.serving_id)
    with ExitStack() as supervised:
        with locked(home.servings):
            make_directory(run_dir.path)
            run_dir.write_job(job)
            supervised.enter_context(launch.supervising(run_dir))
        yield run_dir


def _started(home: Home, servable: Servable, job: ServeJob, vouched: dict[str, int]) -> ServingStarted:
    return ServingStarted(
        serving_id=job.serving_id,
        run_id=job.run_id,
        released_sha256=servable.released_sha256,
        engines=[
            EngineFacts(
                name=one.name,
                kind=one.kind,
                model_sha256=one.model_sha256,
                vouched_by=vouched[one.model_sha256],
            )
            for one in job.engines
        ],
        listens="socket" if job.socket else "loopback",
        clients=[client.name for client in clients.listed(home)],
    )


def _serve(desk: Desk, run_dir: RunDir, job: ServeJob, watch: Watch) -> ServingEnded:
    """Watch the gateway, and its spool, until it or the user ends."""
    try:
        with gateway.running(run_dir) as process:
            _follow(desk, run_dir, job, process, watch)
        raise gateway.failure(run_dir) or ServingDegraded("the gateway ended by itself")
    except KeyboardInterrupt:
        with locked(desk.home.servings):
            ended = collect.end(desk, run_dir, job.run_id, "stopped")
    except BaseException:
        with locked(desk.home.servings):
            collect.end(desk, run_dir, job.run_id, "failed")
        raise
    if ended.damaged_sha256:
        raise collect.damaged(desk, run_dir)
    return ended


def _follow(desk: Desk, run_dir: RunDir, job: ServeJob, process: subprocess.Popen[bytes], watch: Watch) -> None:
    """Tell how the gateway is, and record what it spools, until it ends."""
    began, seen, due, was_well = time.monotonic(), None, 0.0, False
    while process.poll() is None:
        state, now = gateway.state(run_dir), time.monotonic()
        if state is not None and state != seen and now >= due:
            seen, due = state, now + COLLECT_S
            _require_isolation(state)
            was_well = was_well or any(engine.well for engine in state.engines)
            watch(state)
            collect.collect(desk, run_dir, job.run_id)
        if not was_well and now - began > STARTING_S:
            raise ServingDegraded("no engine became well", hint="start it by hand to see what it says")
        time.sleep(POLL_S)


def _require_isolation(state: GatewayState) -> None:
    if any(engine.network == REFUSED for engine in state.engines):
        hint = "allow unprivileged user namespaces (user.max_user_namespaces, AppArmor)"
        raise IsolationViolated("engines cannot leave the network of this machine, as the policy requires", hint=hint)
