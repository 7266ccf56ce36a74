"""An evaluation of a run's adapters on held-out private data and on public text."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from appliance.jobs.job import JobId, Result, SealedObject
from appliance.jobs.plan import UnitOfPrivacy
from appliance.jobs.variants import VariantsJob
from appliance.values import Count, Positive


class EvaluateJob(VariantsJob):
    """`job.json` of an evaluation: template, lengths and base model are those of the run's own job."""

    kind: Literal["evaluate"] = "evaluate"
    evaluation_id: JobId
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
