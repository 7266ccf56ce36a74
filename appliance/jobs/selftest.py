"""The engine self-test of a run: its job without the data, and the checks that were made."""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

from pydantic import Field

from appliance.jobs.job import EngineOptions, IsolationSpec, Job, Result
from appliance.jobs.lora import LoraSpec
from appliance.jobs.plan import PrivacyPlan
from appliance.jobs.train import TrainJob, TrainSpec
from appliance.values import Count, Digest, Positive, Value, to_json


class Check(Value):
    """One check of the engine self-test: what was seen, beside the bound it had to keep, both as decimal text."""

    name: str
    passed: bool
    value: str
    bound: str
    count: Annotated[int, Field(ge=0)]


class ProvedRows(Value):
    """Row counts that give a record of this padded length the same bits, largest first, and the digest of those."""

    length: Count
    counts: tuple[Count, ...]
    bits: Digest


class ShapeProof(Value):
    """What was proved for every shape of micro-batch of a run (`train.coupling`), and what it holds for.

    Attributes:
      shapes: digest of the model and the settings from which shapes and bits follow (`shapes_digest`).
      machine: digest of processor, threads and libraries of the process that proved it.
      rows: one for each padded length, ascending.
      shared: whether supervised positions of several records may share a piece of the head's product.
    """

    shapes: Digest
    machine: Digest
    rows: tuple[ProvedRows, ...]
    shared: bool


class SelftestJob(Job):
    """`job.json` of an engine self-test: the job of a run without its data.

    Attributes:
      proof: of an earlier test; it is taken if it is of these shapes and of this machine.
    """

    kind: Literal["selftest"] = "selftest"
    plan: PrivacyPlan
    lora: LoraSpec
    train: TrainSpec
    engine: EngineOptions
    isolation: IsolationSpec
    model_dir: str
    model_sha256: Digest
    proof: ShapeProof | None = None


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
    proof: ShapeProof | None = None


def shapes_digest(job: SelftestJob | TrainJob) -> str:
    """Digest what the shapes of a job's micro-batches and the bits that they give follow from: SHA-256, hex."""
    clip = f"{job.plan.clipping} {job.plan.max_grad_norm}"
    parts = (job.model_sha256, to_json(job.lora).decode(), to_json(job.engine).decode(), str(job.train.max_tokens))
    return hashlib.sha256("\n".join((*parts, str(job.train.init_seed), clip)).encode()).hexdigest()
