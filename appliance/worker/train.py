"""A training run: the dataset's key, the sandbox, then DP-SGD on the sealed records."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.errors import GateFailed, WillNotFit
from appliance.files import make_directory, staged_directory
from appliance.isolation import sandbox
from appliance.jobs.permits import Permitted
from appliance.jobs.plan import PrivacyPlan
from appliance.jobs.rundir import RunDir
from appliance.jobs.ticket import RankResult, Ticket
from appliance.jobs.train import TrainJob, TrainResult
from appliance.privacy.accounting import charged_epsilon
from appliance.privacy.journal import Journal, JournalState, read
from appliance.privacy.sampler import sampler_delta
from appliance.store import container, nodes
from appliance.store.agent import AgentClient
from appliance.store.trees import tree_digest
from appliance.values import to_json
from appliance.worker import confinement
from appliance.worker.opening import DecodedRecords, load_base
from appliance.worker.place import Place, here
from appliance.worker.proof import read_counts

if TYPE_CHECKING:
    from appliance.train.trained import Trained

JOB = TrainJob


def run(job: TrainJob, run_dir: RunDir) -> TrainResult | RankResult:
    """Train an adapter, or go on with one; the adapter lies in `run_dir/adapter` when this returns.

    Of several ranks the first returns the result, and what the others return says only that they are done.
    """
    place = here()
    if place.several:
        sandbox.require_ranks_alone(job.isolation, place.end)
    gpu = confinement.gpu_of(job.engine, place.local)
    key = _key(job, run_dir, place)
    paths = (Path(job.model_dir), Path(job.dataset.path))
    isolation = confinement.enter(job.isolation, run_dir, *paths, ranks=place.several, end=place.end, gpu=gpu)
    trained = _train(job, run_dir, key, place)
    if not place.main:
        return RankResult(rank=place.rank)
    _save(trained, run_dir, job.model_id)
    from appliance.train.accounting import spent

    digest, _ = tree_digest(run_dir.adapter)
    made = read(run_dir.journal, job.run_id)
    return TrainResult(
        run_id=job.run_id,
        attempts=trained.attempts,
        steps=trained.steps,
        spent=spent(job.plan, trained.attempts, made.made if made else None),
        adapter_sha256=digest,
        trainable_parameters=trained.trainable_parameters,
        isolation=isolation,
        libraries=confinement.libraries(),
    )


def _key(job: TrainJob, run_dir: RunDir, place: Place) -> bytes:
    """Fetch the dataset's key: from the key agent, or on a node from its ticket, with the node's key."""
    if place.rendezvous and place.rendezvous.node:
        ticket = Ticket.model_validate_json(run_dir.ticket.read_bytes())
        return nodes.unseal(ticket.sealed, Path(place.rendezvous.node), ticket.context())
    sealed = job.dataset
    evidence = run_dir.evidence.read_bytes()
    return AgentClient(Path(job.agent_socket)).release(
        evidence, sealed.dataset_id, sealed.wrapped_key, sealed.key_epoch
    )


def _train(job: TrainJob, run_dir: RunDir, key: bytes, place: Place) -> Trained:
    from appliance.train.running import prepare, train_prepared

    if place.main:
        _confirm(job.plan)
    model, tokenizer = _base(job, place)
    ranks = place.join(run_dir, key)
    known = read_counts(run_dir.read_proof(), job, model)
    mechanism = prepare(job, model, tokenizer, ranks, known, confirm=partial(_check_sampler, job.plan))
    sealed = job.dataset
    with (
        container.open_records(Path(sealed.path), key, sealed.dataset_id, sealed.blake3) as opened,
        _journal(job, run_dir) if place.main else nullcontext() as journal,
    ):
        snapshots = _SealedSnapshots(run_dir.snapshots, key, job.run_id) if place.main else None
        records = DecodedRecords(opened)
        return train_prepared(job, mechanism, records, journal, snapshots, lambda public: None, ranks=ranks)


def _confirm(plan: PrivacyPlan) -> None:
    """Confirm the plan's epsilon with the second accountant before a record is read."""
    from appliance.train.accounting import spent

    reserved = spent(plan, plan.attempts)
    if charged_epsilon(reserved.epsilon_pld, reserved.epsilon_prv) > plan.epsilon:
        raise GateFailed("the second accountant does not confirm the plan's epsilon")


def _base(job: TrainJob, place: Place) -> tuple[Any, Any]:
    import torch

    if job.engine.device == "cuda":
        if place.local >= torch.cuda.device_count():
            raise WillNotFit(f"rank {place.rank} has no GPU of its own", hint="`appliance train resume RUN --nproc`")
        torch.cuda.set_device(place.local)
    return load_base(job.model_dir, job.model_sha256, job.engine, job.lora.quantize_base)


@contextmanager
def _journal(job: TrainJob, run_dir: RunDir) -> Iterator[PermittedJournal]:
    permitted = Permitted.inherited()
    plan_sha256 = hashlib.sha256(to_json(job.plan)).hexdigest()
    with Journal.open(run_dir.journal, job.run_id, plan_sha256) as journal:
        yield PermittedJournal(journal, permitted)


def _check_sampler(plan: PrivacyPlan, parameters: int) -> None:
    """Refuse an adapter for which the plan's share of delta for the noise sampler does not suffice.

    Args:
      plan: made for the adapter that was forecast from the catalog.
      parameters: size of the adapter that was really built.

    Raises:
      GateFailed: it is larger than the plan's share of delta allows.
    """
    needed = sampler_delta(parameters, plan.attempts, plan.epsilon, plan.noise_multiplier)
    if needed > plan.sampler_delta:
        raise GateFailed("the noise sampler costs more of delta than the plan set aside")


def _save(trained: Trained, run_dir: RunDir, base: str | None) -> None:
    """Write the adapter beside its name and rename it: it is there whole or not at all."""
    from appliance.train.trained import save_adapter

    run_dir.clear(run_dir.adapter)
    with staged_directory(run_dir.adapter) as made:
        save_adapter(trained, made, base)


class PermittedJournal:
    """The journal of a supervised run: an attempt that was journaled is sampled once the supervisor permits it."""

    def __init__(self, journal: Journal, permitted: Permitted) -> None:
        self._journal, self._permitted = journal, permitted
        self.record_release, self.record_checkpoint = journal.record_release, journal.record_checkpoint

    @property
    def state(self) -> JournalState:
        """What has been journaled so far."""
        return self._journal.state

    def attempt(self, sample_rate: Fraction, noise_multiplier: float) -> int:
        """Journal the attempt, then ask for it: whoever reads the journal later finds what was asked for in it."""
        n = self._journal.attempt(sample_rate, noise_multiplier)
        self._permitted.ask(n)
        return n


class _SealedSnapshots:
    """Training state on disk, sealed under the dataset's key (`train.snapshot.Snapshots`)."""

    def __init__(self, directory: Path, key: bytes, run_id: str) -> None:
        make_directory(directory)
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
