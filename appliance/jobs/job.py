"""What jobs of every kind are made of: ids, engine options, isolation, sealed objects, and a failure as data."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from appliance.values import Count, Digest, Value

JobId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
"""Names a directory, so it can be no path."""


class EngineOptions(Value):
    """How the computation is done. By construction none of these can change the privacy plan.

    Attributes:
      gradient_bytes: of per-record gradients that exist at once. It is public and stands in the job, so it is the same
        whenever and wherever the run goes on: the row count of a micro-batch follows from it.
      cuda_graphs: micro-batches whose shape comes again are replayed; more memory, less work for the host.

    Jobs and tickets that were written before there was a choice do not state the last two; their defaults are not
    written, so the old bytes hold.
    """

    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["bfloat16", "float32"] = "float32"
    physical_tokens: Count = 4096
    gradient_checkpointing: bool = False
    gradient_dtype: Literal["float32", "bfloat16"] = "float32"
    gradient_bytes: Count = 1 << 28
    cuda_graphs: bool = False
    threads: Annotated[int, Field(ge=0)] = 0
    nproc: Count = 1

    @model_serializer(mode="wrap")
    def _as_before(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = write(self)
        fields = type(self).model_fields
        new = [name for name in ("gradient_bytes", "cuda_graphs") if written[name] == fields[name].default]
        return {name: value for name, value in written.items() if name not in new}


class IsolationSpec(Value):
    """What the policy demands of the worker's sandbox."""

    network: Literal["required", "preferred"] = "required"
    files: Literal["required", "preferred"] = "preferred"


class IsolationReport(Value):
    """What the sandbox of a worker really reached."""

    network: str
    files: str
    core_dumps: str


class SealedObject(Value):
    """A sealed object in the store: where it lies and how it is recognised."""

    dataset_id: str
    path: str
    blake3: Digest
    wrapped_key: str
    key_epoch: Count


class Failure(Value):
    """`result.json` of a job that refused or failed: an `ApplianceError` as data."""

    schema_: Literal["appliance.failure/1"] = Field(default="appliance.failure/1", alias="schema")
    error: str
    message: str
    hint: str = ""
    where: str = ""


class Job(Value):
    """What every `job.json` says: its format, its kind, and what it is about. All of it is public."""

    schema_: Literal["appliance.job/1"] = Field(default="appliance.job/1", alias="schema")
    kind: str
    run_id: JobId


class Result(Value):
    """What every `result.json` says: the job's kind and id, the sandbox that was reached, and what computed."""

    schema_: Literal["appliance.result/1"] = Field(default="appliance.result/1", alias="schema")
    kind: str
    run_id: JobId
    isolation: IsolationReport
    libraries: dict[str, str]
