"""Serve: engines, relay, gateway and listener together, until this process is told to end."""

from __future__ import annotations

import asyncio
import resource
import socket
import tempfile
from pathlib import Path

from appliance.jobs.rundir import RunDir
from appliance.jobs.serve import SPOOL, STATE, GatewayState, ServeJob
from appliance.serve.clients import Doorkeeper
from appliance.serve.engine import Engine
from appliance.serve.gateway import Gateway
from appliance.serve.listening import opened, server
from appliance.serve.relay import Relay
from appliance.serve.spool import Spool
from appliance.values import to_json

EVERY_S = 0.2


def run(job: ServeJob, run_dir: RunDir) -> GatewayState:
    """Serve until SIGTERM or SIGINT; what was counted.

    Raises:
      Busy: somebody listens at the address already.
    """
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with tempfile.TemporaryDirectory(prefix="serve-") as scratch:
        return asyncio.run(_serve(job, run_dir, Path(scratch)))


async def _serve(job: ServeJob, run_dir: RunDir, scratch: Path) -> GatewayState:
    with opened(job, run_dir.path.parent) as (listener, address):
        return await _serve_at(listener, address, job, run_dir, scratch)


async def _serve_at(
    listener: socket.socket, address: str, job: ServeJob, run_dir: RunDir, scratch: Path
) -> GatewayState:
    engines: list[Engine] = []
    relay = Relay(engines, job.health, job.limits)
    engines += [Engine(spec, job.health, job.isolation, scratch, relay.wake) for spec in job.engines]
    spool = Spool(run_dir.path / SPOOL)
    gateway = Gateway(job, relay, Doorkeeper(Path(job.clients)), spool)
    for engine in engines:
        engine.start()
    telling = asyncio.create_task(_tell(gateway, run_dir, address))
    try:
        await server(gateway.app(), job.limits).serve(sockets=[listener])
    finally:
        telling.cancel()
        await asyncio.gather(telling, *(engine.stop() for engine in engines), return_exceptions=True)
        spool.close()
    return state(gateway, "")


async def _tell(gateway: Gateway, run_dir: RunDir, address: str) -> None:
    """Write the state when it changes. It need not last, and a flush to the disk would hold up every answer."""
    before, path = b"", run_dir.path / STATE
    while True:
        now = to_json(state(gateway, address))
        if now != before:
            path.with_suffix(".new").write_bytes(now)
            path.with_suffix(".new").replace(path)
        before = now
        await asyncio.sleep(EVERY_S)


def state(gateway: Gateway, address: str) -> GatewayState:
    """Say how the gateway is."""
    counted = {name: gateway.counts[name] for name in ("answered", "degraded", "cut", "lost", "refused", "left")}
    engines = tuple(engine.state() for engine in gateway.relay.engines)
    return GatewayState(address=address, engines=engines, busy_s=round(gateway.busy_s, 6), **counted)
