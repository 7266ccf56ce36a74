"""A training run: the job that is reserved, and what comes of it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from appliance.jobs.account import PrivacySpent
from appliance.jobs.job import EngineOptions, IsolationSpec, Job, Result, SealedObject
from appliance.jobs.lora import LoraSpec
from appliance.jobs.plan import PrivacyPlan
from appliance.values import Count, Digest, Positive, Value, is_none


class TrainSpec(Value):
    """Optimisation settings. None of them changes the privacy guarantee."""

    lr: Positive
    max_tokens: Count
    init_seed: Annotated[int, Field(ge=0)] = 7
    train_on: Literal["completion", "all"] = "completion"
    template: Literal["base", "fallback", "none"] = "base"


class TrainJob(Job):
    """`job.json` of a training run: everything the worker needs, all of it public.

    Attributes:
      model_id: the base model's name in the catalog; jobs of earlier releases have none.
    """

    kind: Literal["train"] = "train"
    model_id: str | None = Field(default=None, exclude_if=is_none)
    plan: PrivacyPlan
    lora: LoraSpec
    train: TrainSpec
    engine: EngineOptions
    isolation: IsolationSpec
    model_dir: str
    model_sha256: Digest
    dataset: SealedObject
    agent_socket: str


class TrainResult(Result):
    """`result.json` of a finished training run. Public values only."""

    kind: Literal["train"] = "train"
    attempts: int
    steps: int
    spent: PrivacySpent
    adapter_sha256: Digest
    trainable_parameters: int
