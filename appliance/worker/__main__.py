"""The second entry point: `python -m appliance.worker RUN_DIR` reads job.json and writes result.json.

The worker is the compute plane. In this order it: hardens its process and ties its life to the supervisor's, locks
its run directory, fetches its one key from the key agent where the job needs one, enters the sandbox (no network, few
files), and only then imports torch and touches model files or private data. It has no database and prints nothing.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import orjson
from pydantic import BaseModel, ValidationError

from appliance.errors import ApplianceError, Busy, ConfigInvalid, ran_out
from appliance.files import lock, write_atomic
from appliance.isolation import process
from appliance.jobs.job import Failure, Job
from appliance.jobs.rundir import RunDir
from appliance.names import visible
from appliance.values import to_json
from appliance.worker.place import here

_KIND = re.compile(r"[a-z]+(-[a-z]+)*")


def main() -> None:
    """Run one job. The exit status is 0 if `result.json` holds a result, 1 if it holds a failure."""
    run_dir, place = RunDir(Path(sys.argv[1])), here()
    process.harden(int(os.environ["APPLIANCE_SUPERVISOR"]))
    os.umask(0o077)  # in the sandbox no mode can be changed afterwards
    try:
        with _locked(run_dir):
            outcome: BaseModel = _work(run_dir)
    except ApplianceError as refusal:
        outcome = Failure(
            error=type(refusal).__name__,
            message=visible(refusal.message),
            hint=visible(refusal.hint),
            where=visible(refusal.where),
        )
    except Exception as bug:  # noqa: BLE001 - the message of a foreign exception may hold private text: it is dropped
        outcome = _bug(bug)
    write_atomic(place.result(run_dir), to_json(outcome))
    status = 1 if isinstance(outcome, Failure) else 0
    if place.several:
        os._exit(status)  # the threads of the others' connections must not hold up the end
    sys.exit(status)


def _bug(bug: Exception) -> Failure:
    if ran_out(bug):
        return Failure(error="WillNotFit", message="memory ran out")
    frames = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(bug.__traceback__)[-4:]]
    message = f"internal error in the worker, {type(bug).__name__} at {' < '.join(reversed(frames))}"
    return Failure(error="ApplianceError", message=message)


@contextmanager
def _locked(run_dir: RunDir) -> Iterator[None]:
    """Lock the run directory for this worker: two never train one run. Ranks inherit the lock from their launcher."""
    if "APPLIANCE_LOCK" in os.environ:
        descriptor = int(os.environ["APPLIANCE_LOCK"])
    else:
        try:
            descriptor = lock(run_dir.worker_lock, wait=False)
        except BlockingIOError:
            raise Busy("another worker is on this run directory") from None
    try:
        yield
    finally:
        os.close(descriptor)


def _work(run_dir: RunDir) -> BaseModel:
    """Do the job: a job of kind `model-import` is done by `run` of the module `model_import` beside this one."""
    data = run_dir.job.read_bytes()
    try:
        module = _module(str(orjson.loads(data)["kind"]))
        job: Job = module.JOB.model_validate_json(data)
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError, ValidationError):
        raise ConfigInvalid("not a job", where=str(run_dir.job)) from None
    outcome: BaseModel = module.run(job, run_dir)
    return outcome


def _module(kind: str) -> ModuleType:
    name = f"appliance.worker.{kind.replace('-', '_')}"
    if not _KIND.fullmatch(kind) or find_spec(name) is None:
        raise KeyError(kind)
    return import_module(name)


if __name__ == "__main__":
    main()
