"""The third entry point: `python -m appliance.serve RUN_DIR` reads job.json, serves, and writes result.json.

Like the worker it belongs to the compute plane: it has no database and prints nothing, and what it has to say is in
files of its run directory, all of it public. Unlike the worker it speaks HTTP, and handles no record and no key of the
store.
"""

from __future__ import annotations

import os
import sys
import traceback
from importlib import import_module
from pathlib import Path

import orjson
from pydantic import BaseModel, ValidationError

from appliance.errors import ApplianceError, ConfigInvalid
from appliance.files import write_atomic
from appliance.isolation import process
from appliance.jobs.job import Failure, Job
from appliance.jobs.rundir import RunDir
from appliance.jobs.serve import ServeJob
from appliance.jobs.trials import BenchJob, DrillJob
from appliance.names import visible
from appliance.values import to_json

JOBS: dict[str, tuple[type[Job], str]] = {
    "serve": (ServeJob, "serving"),
    "serve-drill": (DrillJob, "drill"),
    "serve-bench": (BenchJob, "bench"),
}
"""Kinds of jobs, what they must be, and the module that does them."""


def main() -> None:
    """Do one job. The exit status is 0 if `result.json` holds a result, 1 if it holds a failure."""
    run_dir = RunDir(Path(sys.argv[1]))
    process.harden(int(os.environ["APPLIANCE_SUPERVISOR"]))
    os.umask(0o077)
    try:
        outcome = _work(run_dir)
    except ApplianceError as refusal:
        message, hint, where = map(visible, (refusal.message, refusal.hint, refusal.where))
        outcome = Failure(error=type(refusal).__name__, message=message, hint=hint, where=where)
    except Exception as bug:  # noqa: BLE001 - the message of a foreign exception may hold text of others: it is dropped
        outcome = _bug(bug)
    write_atomic(run_dir.result, to_json(outcome))
    sys.exit(isinstance(outcome, Failure))


def _work(run_dir: RunDir) -> BaseModel:
    data = run_dir.job.read_bytes()
    try:
        kind, module = JOBS[orjson.loads(data)["kind"]]
        job = kind.model_validate_json(data)
    except (orjson.JSONDecodeError, KeyError, TypeError, ValidationError):
        raise ConfigInvalid("not a job", where=str(run_dir.job)) from None
    outcome: BaseModel = import_module(f"appliance.serve.{module}").run(job, run_dir)
    return outcome


def _bug(bug: Exception) -> Failure:
    frames = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(bug.__traceback__)[-4:]]
    message = f"internal error in the gateway, {type(bug).__name__} at {' < '.join(reversed(frames))}"
    return Failure(error="ApplianceError", message=message)


if __name__ == "__main__":
    main()
