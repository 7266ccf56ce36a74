"""A gateway's process: started, watched, ended. It is told nothing but its run directory."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from pydantic import ValidationError

import appliance.errors
from appliance.errors import ApplianceError, ArtefactMissing
from appliance.flows.launch import KEPT_ENVIRONMENT
from appliance.isolation import interpreter
from appliance.jobs.job import Failure
from appliance.jobs.rundir import RunDir
from appliance.jobs.serve import STATE, GatewayState

GRACE_S = 20.0
"""For answers that are under way when it is told to end."""


def require_gateway() -> None:
    """Refuse where the gateway's packages are not installed. Raises `ArtefactMissing`."""
    if importlib.util.find_spec("starlette") is None:
        hint = "on the machine that serves: pip install 'appliance[serve]'"
        raise ArtefactMissing("this installation has no gateway", hint=hint)


@contextmanager
def running(run_dir: RunDir) -> Iterator[subprocess.Popen[bytes]]:
    """Run the gateway on a directory that holds `job.json`; it is ended with the block."""
    environment = {name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ}
    process = subprocess.Popen(
        interpreter.module("appliance.serve", str(run_dir.path)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=interpreter.DIRECTORY,
        env=environment | {"APPLIANCE_SUPERVISOR": str(os.getpid())},
        start_new_session=True,  # Ctrl-C is for the supervisor, who then ends it in order
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def state(run_dir: RunDir) -> GatewayState | None:
    """Read how a gateway is; None before it says anything."""
    with suppress(FileNotFoundError, ValidationError):
        return GatewayState.model_validate_json((run_dir.path / STATE).read_bytes())
    return None


def failure(run_dir: RunDir) -> ApplianceError | None:
    """Read why a gateway failed; None if it did not say."""
    try:
        said = Failure.model_validate_json(run_dir.result.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    kind = getattr(appliance.errors, said.error, ApplianceError)
    known = isinstance(kind, type) and issubclass(kind, ApplianceError)
    return (kind if known else ApplianceError)(said.message, hint=said.hint, where=said.where)
