"""The second entry point: `python -m appliance.worker RUN_DIR` reads job.json and writes result.json.

The worker is the compute plane. In this order it: hardens its process and ties its life to the supervisor's, locks
its run directory, fetches its one key from the key agent where the job needs one, enters the sandbox (no network, few
files), and only then imports torch and touches model files or private data. It has no database and prints nothing.
"""

from __future__ import annotations

import fcntl
import os
import sys
import traceback
from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from appliance.errors import ApplianceError, Busy, ConfigInvalid, ran_out
from appliance.isolation import process
from appliance.records import (
    AccountJob,
    DetectJob,
    EmbedJob,
    EvaluateJob,
    Failure,
    ImportJob,
    SelftestJob,
    TrainJob,
    to_json,
)
from appliance.store.files import write_atomic
from appliance.worker.place import here

Job = TrainJob | ImportJob | AccountJob | SelftestJob | EmbedJob | DetectJob | EvaluateJob
_JOB: TypeAdapter[Job] = TypeAdapter(Annotated[Job, Field(discriminator="kind")])
_MODULES = {
    "train": "training",
    "model-import": "importing",
    "account": "accounting",
    "selftest": "selftesting",
    "watermark-embed": "marking",
    "watermark-detect": "marking",
    "evaluate": "evaluating",
}


def main() -> None:
    """Run one job. The exit status is 0 if `result.json` holds a result, 1 if it holds a failure."""
    run_dir, place = Path(sys.argv[1]), here()
    process.harden(int(os.environ["APPLIANCE_SUPERVISOR"]))
    try:
        with _locked(run_dir):
            outcome: BaseModel = _work(run_dir)
    except ApplianceError as refusal:
        outcome = Failure(
            schema="appliance.failure/1",
            error=type(refusal).__name__,
            message=refusal.message,
            hint=refusal.hint,
            where=refusal.where,
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
        return Failure(schema="appliance.failure/1", error="WillNotFit", message="memory ran out")
    frames = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(bug.__traceback__)[-4:]]
    message = f"internal error in the worker, {type(bug).__name__} at {' < '.join(reversed(frames))}"
    return Failure(schema="appliance.failure/1", error="ApplianceError", message=message)


class _locked(AbstractContextManager[None]):  # noqa: N801 - used like a function
    """The worker's lock on its run directory: two workers never train one run. Ranks inherit it from their launcher."""

    def __init__(self, run_dir: Path) -> None:
        if "APPLIANCE_LOCK" in os.environ:
            self.descriptor = int(os.environ["APPLIANCE_LOCK"])
            return
        self.descriptor = os.open(run_dir / "worker.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy("another worker is on this run directory") from None

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)


def _work(run_dir: Path) -> BaseModel:
    job = _job(run_dir)
    module = import_module(f"appliance.worker.{_MODULES[job.kind]}")
    outcome: BaseModel = module.run(job, run_dir)
    return outcome


def _job(run_dir: Path) -> Job:
    data = (run_dir / "job.json").read_bytes()
    try:
        return _JOB.validate_json(data)
    except ValidationError:
        raise ConfigInvalid("not a job", where=str(run_dir / "job.json")) from None


if __name__ == "__main__":
    main()
