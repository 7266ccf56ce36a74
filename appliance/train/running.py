"""A training job from its start to its end: the mechanism is made and proved, then the loop runs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from appliance.jobs.train import TrainJob
from appliance.train.engines import Alone, Ranks
from appliance.train.following import NotHere
from appliance.train.journaling import Journal
from appliance.train.loop import Progress, Trainer
from appliance.train.mechanism import Assembled, assemble
from appliance.train.members import Records
from appliance.train.proofs import prove_alike
from appliance.train.rows import RowCounts
from appliance.train.snapshot import Snapshots
from appliance.train.trained import Trained
from appliance.values import to_json


def train(
    job: TrainJob,
    model: Any,
    tokenizer: Any,
    records: Records,
    journal: Journal | None,
    snapshots: Snapshots | None,
    progress: Progress,
    unit_of: Sequence[str] | None = None,
    ranks: Ranks | None = None,
    *,
    confirm: Callable[[int], None] = lambda parameters: None,
) -> Trained:
    """Train a LoRA adapter with DP-SGD, or goes on with a run that was interrupted.

    Args:
      job: plan, adapter, training and engine settings, all public.
      model: a loaded causal language model in the engine's dtype; it is adapted in place.
      tokenizer: its tokenizer.
      records: the private records.
      journal: the run's journal, opened to continue; None on every rank but the first.
      snapshots: where state and releases are kept; None on every rank but the first.
      progress: called after every applied step with public counts: step, steps, attempts, reserved.
      unit_of: the unit of privacy of each record; read from the records when it is None. Only used by plans whose
        unit is the subject: otherwise every record is its own unit.
      ranks: the processes that train together; None is this one alone.
      confirm: shown the size of the adapter that was built, before a batch is sampled; raises to refuse it.

    Raises:
      ConfigInvalid: for a model or targets that cannot be trained exactly.
      GateFailed: when a proof at the start or after the first step fails.
      IntegrityError: when snapshot, releases and journal contradict each other.
      Interrupted: another rank has ended.
    """
    ranks = ranks or Alone()
    mechanism = prepare(job, model, tokenizer, ranks, confirm=confirm)
    return train_prepared(job, mechanism, records, journal, snapshots, progress, unit_of, ranks)


def prepare(
    job: TrainJob,
    model: Any,
    tokenizer: Any,
    ranks: Ranks | None = None,
    known: RowCounts | None = None,
    *,
    confirm: Callable[[int], None] = lambda parameters: None,
) -> Assembled:
    """Assemble the mechanism of a run, prove it, and see that all ranks compute alike. No record is needed for it.

    Args:
      job: as of `train`, like all others that are not explained.
      model: it is adapted in place.
      tokenizer: its tokenizer.
      ranks: the processes that train together.
      confirm: shown the size of the adapter.
      known: row counts that were proved before for this job on this machine.

    Raises:
      ConfigInvalid: for a model or targets that cannot be trained exactly.
      GateFailed: a proof fails, or a rank has other bits than the first.
      Interrupted: another rank has ended.
    """
    ranks = ranks or Alone()
    mechanism = assemble(job.plan, job.lora, job.train, job.engine, model, tokenizer, None if ranks.main else NotHere())
    confirm(mechanism.adapter.parameters)
    prove_alike(mechanism.engine, mechanism.encoder.buckets, ranks, known)
    return mechanism


def train_prepared(
    job: TrainJob,
    mechanism: Assembled,
    records: Records,
    journal: Journal | None,
    snapshots: Snapshots | None,
    progress: Progress,
    unit_of: Sequence[str] | None = None,
    ranks: Ranks | None = None,
) -> Trained:
    """Train with what `prepare` made of the same job; arguments and errors as of `train`."""
    settings = _settings_digest(job)
    return Trainer(mechanism, job.plan, settings, records, journal, snapshots, progress, unit_of, ranks=ranks).run()


def _settings_digest(job: TrainJob) -> str:
    parts = b"".join(to_json(value) for value in (job.plan, job.lora, job.train))
    return hashlib.sha256(parts + job.model_sha256.encode() + job.dataset.blake3.encode()).hexdigest()
