"""The second entry point: `python -m appliance.worker RUN_DIR` reads job.json and writes result.json.

The worker is the compute plane. In this order it: hardens its process and ties its life to the supervisor's, locks
its run directory, fetches its one dataset key from the key agent, enters the sandbox (no network, few files), and only
then imports torch and touches model files or private data. It has no database and prints nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sys
import traceback
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from appliance.errors import ApplianceError, Busy, ConfigInvalid, GateFailed, IntegrityError
from appliance.isolation import process, sandbox
from appliance.privacy.accounting import charged_epsilon
from appliance.privacy.journal import Journal
from appliance.privacy.sampler import sampler_delta
from appliance.records import (
    AccountJob,
    Failure,
    ImportJob,
    ImportResult,
    IsolationReport,
    IsolationSpec,
    LoraSpec,
    PrivacyPlan,
    PrivacySpent,
    Record,
    TrainJob,
    TrainResult,
    to_json,
)
from appliance.store import container
from appliance.store.agent import AgentClient
from appliance.store.files import commit, fsync_tree, tree_digest, write_atomic

if TYPE_CHECKING:
    from appliance.train.trained import Trained

Job = TrainJob | ImportJob | AccountJob
_JOB: TypeAdapter[Job] = TypeAdapter(Annotated[Job, Field(discriminator="kind")])
LIBRARIES = ("torch", "opacus", "peft", "transformers", "dp-accounting", "cryptography")


def main() -> None:
    """Run one job. The exit status is 0 if `result.json` holds a result, 1 if it holds a failure."""
    run_dir = Path(sys.argv[1])
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
    write_atomic(run_dir / "result.json", to_json(outcome))
    sys.exit(1 if isinstance(outcome, Failure) else 0)


def _bug(bug: Exception) -> Failure:
    if isinstance(bug, MemoryError) or "out of memory" in type(bug).__name__.lower():
        return Failure(schema="appliance.failure/1", error="WillNotFit", message="memory ran out")
    frames = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(bug.__traceback__)[-4:]]
    message = f"internal error in the worker, {type(bug).__name__} at {' < '.join(reversed(frames))}"
    return Failure(schema="appliance.failure/1", error="ApplianceError", message=message)


class _locked(AbstractContextManager[None]):  # noqa: N801 - used like a function
    """The worker's lock on its run directory: two workers never train one run."""

    def __init__(self, run_dir: Path) -> None:
        self.descriptor = os.open(run_dir / "worker.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy("another worker is on this run directory") from None

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)


def _work(run_dir: Path) -> BaseModel:
    job = _job(run_dir)
    if isinstance(job, TrainJob):
        return _train(job, run_dir)
    if isinstance(job, ImportJob):
        return _import_model(job, run_dir)
    return _account(job, run_dir)


def _job(run_dir: Path) -> Job:
    data = (run_dir / "job.json").read_bytes()
    try:
        return _JOB.validate_json(data)
    except ValidationError:
        raise ConfigInvalid("not a job", where=str(run_dir / "job.json")) from None


def _enter_sandbox(spec: IsolationSpec, run_dir: Path, *readable: Path) -> IsolationReport:
    """No network from here on, and no files but the system's, the package's and those of the job."""
    read = [*sandbox.system_paths(), *readable]
    return sandbox.enter(spec, read=read, write=[run_dir, Path("/dev/null")])


def _libraries() -> dict[str, str]:
    return {name: version(name) for name in LIBRARIES}


def _import_model(job: ImportJob, run_dir: Path) -> ImportResult:
    source, output = Path(job.source), Path(job.output_dir)
    isolation = _enter_sandbox(job.isolation, run_dir, source)
    from appliance.models.importing import import_model

    made = import_model(source, output)
    fsync_tree(output)
    digest, files = tree_digest(output)
    return ImportResult(
        schema="appliance.result/1",
        run_id=job.run_id,
        sha256=digest,
        files=files,
        source_format=made.source_format,
        source_sha256=made.source_sha256,
        architecture=made.architecture,
        parameters=made.parameters,
        licence=made.licence,
        has_chat_template=made.has_chat_template,
        shapes=made.shapes,
        isolation=isolation,
        libraries=_libraries(),
    )


def _account(job: AccountJob, run_dir: Path) -> PrivacySpent:
    _enter_sandbox(IsolationSpec(), run_dir)
    from appliance.train.accounting import spent

    return spent(job.plan, job.attempts)


def _run_loop(job: TrainJob, run_dir: Path, records: _DecodedRecords, snapshots: _SealedSnapshots) -> Trained:
    import torch

    from appliance.models.loading import load
    from appliance.train.accounting import spent
    from appliance.train.loop import train

    if job.engine.threads:
        torch.set_num_threads(job.engine.threads)
    reserved = spent(job.plan, job.plan.attempts)
    if charged_epsilon(reserved.epsilon_pld, reserved.epsilon_prv) > job.plan.epsilon:  # before a record is read
        raise GateFailed("the second accountant does not confirm the plan's epsilon")
    if tree_digest(Path(job.model_dir))[0] != job.model_sha256:
        raise IntegrityError("the base model is not the one of the job", where=job.model_dir)
    model, tokenizer = load(Path(job.model_dir), getattr(torch, job.engine.dtype))
    model.to(job.engine.device)
    _check_sampler(job.plan, job.lora, model)
    plan_sha256 = hashlib.sha256(to_json(job.plan)).hexdigest()
    with Journal.open(run_dir / "journal.jsonl", job.run_id, plan_sha256) as journal:
        trained = train(job, model, tokenizer, records, journal, snapshots, lambda public: None)
    return trained


def _check_sampler(plan: PrivacyPlan, lora: LoraSpec, model: Any) -> None:
    """The plan's share of delta for the noise sampler must suffice for the adapter that this model really gets."""
    import torch

    linear = {n: m.weight.shape for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    parameters = lora.r * sum(sum(shape) for name, shape in linear.items() if lora.selects(name))
    needed = sampler_delta(parameters, plan.attempts, plan.epsilon, plan.noise_multiplier)
    if needed > plan.sampler_delta:
        raise GateFailed("the noise sampler costs more of delta than the plan set aside")


def _save(trained: Trained, run_dir: Path) -> None:
    """Write the adapter beside its name and rename it: it is there whole or not at all."""
    from appliance.train.trained import save_adapter

    shutil.rmtree(run_dir / "adapter.partial", ignore_errors=True)
    (run_dir / "adapter.partial").mkdir(mode=0o700)
    save_adapter(trained, run_dir / "adapter.partial")
    fsync_tree(run_dir / "adapter.partial")
    shutil.rmtree(run_dir / "adapter", ignore_errors=True)
    commit(run_dir / "adapter.partial", run_dir / "adapter")


class _SealedSnapshots:
    """Training state on disk, sealed under the dataset's key (`train.snapshot.Snapshots`)."""

    def __init__(self, directory: Path, key: bytes, run_id: str) -> None:
        directory.mkdir(mode=0o700, exist_ok=True)
        self._directory, self._key, self._run_id = directory, key, run_id

    def _object(self, name: str) -> str:
        return f"{self._run_id}/{name}"

    def save(self, name: str, data: bytes) -> None:
        container.seal_bytes(data, self._directory / name, self._key, self._object(name))

    def load(self, name: str) -> bytes | None:
        path = self._directory / name
        return container.open_bytes(path, self._key, self._object(name)) if path.exists() else None

    def delete(self, name: str) -> None:
        (self._directory / name).unlink(missing_ok=True)


class _DecodedRecords:
    """The records of an open sealed object as a sequence; each is decrypted when it is asked for."""

    def __init__(self, sealed: container.SealedRecords) -> None:
        self._sealed = sealed

    def __len__(self) -> int:
        return len(self._sealed)

    def __getitem__(self, index: int) -> Record:
        return Record.decode(self._sealed[index])


def _train(job: TrainJob, run_dir: Path) -> TrainResult:
    sealed = job.dataset
    client = AgentClient(Path(job.agent_socket))
    evidence = (run_dir / "evidence.json").read_bytes()
    key = client.release(evidence, sealed.dataset_id, sealed.wrapped_key, sealed.key_epoch)
    isolation = _enter_sandbox(job.isolation, run_dir, Path(job.model_dir), Path(sealed.path))
    with container.open_records(Path(sealed.path), key, sealed.dataset_id, sealed.blake3) as records:
        snapshots = _SealedSnapshots(run_dir / "snapshots", key, job.run_id)
        trained = _run_loop(job, run_dir, _DecodedRecords(records), snapshots)
    _save(trained, run_dir)
    from appliance.train.accounting import spent

    digest, _ = tree_digest(run_dir / "adapter")
    return TrainResult(
        schema="appliance.result/1",
        run_id=job.run_id,
        attempts=trained.attempts,
        steps=trained.steps,
        spent=spent(job.plan, trained.attempts),
        adapter_sha256=digest,
        trainable_parameters=trained.trainable_parameters,
        isolation=isolation,
        libraries=_libraries(),
    )


if __name__ == "__main__":
    main()
