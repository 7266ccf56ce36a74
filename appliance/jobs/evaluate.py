"""An evaluation of a run's adapters on held-out private data and on public text."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from appliance.jobs.job import EngineOptions, IsolationSpec, Job, JobId, Result, SealedObject
from appliance.jobs.plan import UnitOfPrivacy
from appliance.jobs.train import TrainSpec
from appliance.values import Count, Digest, Positive


class EvaluateJob(Job):
    """`job.json` of an evaluation: template, lengths and base model are those of the run's own job."""

    kind: Literal["evaluate"] = "evaluate"
    evaluation_id: JobId
    train: TrainSpec
    engine: EngineOptions
    isolation: IsolationSpec
    model_dir: str
    model_sha256: Digest
    adapter_dir: str
    adapter_sha256: Digest
    released_dir: str | None
    released_sha256: Digest | None
    dataset: SealedObject
    unit: UnitOfPrivacy
    declared_units: Count
    noise_multiplier: Positive
    clip_nat: Positive
    public_tokens: Annotated[int, Field(ge=0)]
    agent_socket: str


class EvaluateResult(Result):
    """`result.json` of an evaluation: the noised sum over private data, and figures of public text as decimal text."""

    kind: Literal["evaluate"] = "evaluate"
    evaluation_id: JobId
    released: tuple[int, ...]
    public: dict[str, str]
