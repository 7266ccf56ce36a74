"""A training run: the dataset's key, the sandbox, then DP-SGD on the sealed records."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.errors import GateFailed
from appliance.privacy.accounting import charged_epsilon
from appliance.privacy.journal import Journal
from appliance.privacy.sampler import sampler_delta
from appliance.records import LoraSpec, PrivacyPlan, TrainJob, TrainResult, to_json
from appliance.store import container
from appliance.store.agent import AgentClient
from appliance.store.files import commit, fsync_tree, tree_digest
from appliance.worker import sandboxed
from appliance.worker.opening import DecodedRecords, load_base

if TYPE_CHECKING:
    from appliance.train.trained import Trained


def run(job: TrainJob, run_dir: Path) -> TrainResult:
    """Train an adapter, or go on with one; the adapter lies in `run_dir/adapter` when this returns."""
    sealed = job.dataset
    client = AgentClient(Path(job.agent_socket))
    evidence = (run_dir / "evidence.json").read_bytes()
    key = client.release(evidence, sealed.dataset_id, sealed.wrapped_key, sealed.key_epoch)
    isolation = sandboxed.enter(job.isolation, run_dir, Path(job.model_dir), Path(sealed.path))
    with container.open_records(Path(sealed.path), key, sealed.dataset_id, sealed.blake3) as records:
        snapshots = _SealedSnapshots(run_dir / "snapshots", key, job.run_id)
        trained = _run_loop(job, run_dir, DecodedRecords(records), snapshots)
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
        libraries=sandboxed.libraries(),
    )


def _run_loop(job: TrainJob, run_dir: Path, records: DecodedRecords, snapshots: _SealedSnapshots) -> Trained:
    from appliance.train.accounting import spent
    from appliance.train.loop import train

    reserved = spent(job.plan, job.plan.attempts)
    if charged_epsilon(reserved.epsilon_pld, reserved.epsilon_prv) > job.plan.epsilon:  # before a record is read
        raise GateFailed("the second accountant does not confirm the plan's epsilon")
    model, tokenizer = load_base(job.model_dir, job.model_sha256, job.engine, job.lora.quantize_base)
    _check_sampler(job.plan, job.lora, model)
    plan_sha256 = hashlib.sha256(to_json(job.plan)).hexdigest()
    with Journal.open(run_dir / "journal.jsonl", job.run_id, plan_sha256) as journal:
        trained = train(job, model, tokenizer, records, journal, snapshots, lambda public: None)
    return trained


def _check_sampler(plan: PrivacyPlan, lora: LoraSpec, model: Any) -> None:
    """The plan's share of delta for the noise sampler must suffice for the adapter that this model really gets."""
    import torch

    linear = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    parameters = lora.trainable({name: (m.out_features, m.in_features) for name, m in linear.items()})
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
