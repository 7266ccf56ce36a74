"""The engine self-test of a run: its job without the data, and the checks that were made."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from appliance.jobs.job import EngineOptions, IsolationSpec, Job, Result
from appliance.jobs.lora import LoraSpec
from appliance.jobs.plan import PrivacyPlan
from appliance.jobs.train import TrainSpec
from appliance.values import Digest, Positive, Value


class Check(Value):
    """One check of the engine self-test: what was seen, beside the bound it had to keep, both as decimal text."""

    name: str
    passed: bool
    value: str
    bound: str
    count: Annotated[int, Field(ge=0)]


class SelftestJob(Job):
    """`job.json` of an engine self-test: the job of a run without its data."""

    kind: Literal["selftest"] = "selftest"
    plan: PrivacyPlan
    lora: LoraSpec
    train: TrainSpec
    engine: EngineOptions
    isolation: IsolationSpec
    model_dir: str
    model_sha256: Digest


class GpuRate(Value):
    """What a GPU reached: its name as the driver has it, and 10^9 operations per second of a product in a dtype."""

    name: str
    dtype: Literal["bfloat16", "float32"]
    gigaflops: Positive


class SelftestResult(Result):
    """`result.json` of a self-test. Everything in it comes from synthetic data."""

    kind: Literal["selftest"] = "selftest"
    passed: bool
    checks: tuple[Check, ...]
    rate: GpuRate | None = None
