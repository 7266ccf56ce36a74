"""A gateway of its own for a drill or a measurement: a process, a key that nobody else has, and its state."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import subprocess
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from appliance.errors import IsolationViolated, ServingDegraded
from appliance.files import make_directory, write_atomic
from appliance.isolation import interpreter
from appliance.jobs.rundir import RunDir
from appliance.jobs.serve import CLIENTS, REFUSED, STATE, Client, Clients, GatewayState, ServeJob
from appliance.values import to_json

POLL_S = 0.05


@dataclass
class Subject:
    """A gateway that runs."""

    directory: RunDir
    process: subprocess.Popen[bytes]
    key: str

    def state(self) -> GatewayState | None:
        """Read how it is; None before it says anything."""
        try:
            return GatewayState.model_validate_json((self.directory.path / STATE).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    async def reach(self, holds: Callable[[GatewayState], bool], within_s: float) -> GatewayState | None:
        """Wait until something holds of its state; None where it did not come to it. Raises `ServingDegraded`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within_s
        while loop.time() < deadline:
            if self.process.poll() is not None:
                raise ServingDegraded("the gateway ended by itself")
            state = self.state()
            if state is not None and any(engine.network == REFUSED for engine in state.engines):
                raise IsolationViolated("engines cannot leave the network of this machine, as the policy requires")
            if state is not None and holds(state):
                return state
            await asyncio.sleep(POLL_S)
        return None

    async def all_well(self, within_s: float) -> GatewayState | None:
        """Wait until every engine is well; None where one does not become so."""
        return await self.reach(lambda state: all(engine.well for engine in state.engines), within_s)


@asynccontextmanager
async def serving(job: ServeJob, run_dir: RunDir) -> AsyncGenerator[Subject]:
    """Run the gateway of `job` below `run_dir`, with one client that may ask as often as it likes.

    Raises:
      ServingDegraded: its engines do not become well.
    """
    directory, key = RunDir(run_dir.path / "gateway"), secrets.token_urlsafe(32)
    make_directory(directory.path)
    clients = directory.path / CLIENTS
    only = Client(name="own", key_sha256=hashlib.sha256(key.encode()).hexdigest(), per_minute=10**9)
    write_atomic(clients, to_json(Clients(clients=(only,))))
    directory.write_job(job.model_copy(update={"clients": str(clients), "socket": "", "port": 0}))
    process = _spawn(directory.path)
    try:
        subject = Subject(directory, process, key)
        if await subject.all_well(job.health.start_s) is None:
            raise ServingDegraded("no engine became well", hint="start it by hand to see what it says")
        yield subject
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait)


def _spawn(directory: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        interpreter.module("appliance.serve", str(directory)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=interpreter.DIRECTORY,
        env={**os.environ, "APPLIANCE_SUPERVISOR": str(os.getpid())},
    )
