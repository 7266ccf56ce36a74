"""The frozen types that travel between rooms.

Two kinds: plain frozen dataclasses for values inside one process, and strict pydantic models where bytes become
values (`job.json`, `result.json`). Nothing here does I/O.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from fractions import Fraction
from itertools import accumulate
from typing import Annotated, Any, Generic, Literal, NoReturn, Self, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

T = TypeVar("T")


class Private(Generic[T]):
    """A data-dependent value that is not differentially private: a loss, a norm, a batch size, a record count.

    It can be computed with through `reveal`, but never printed, formatted, pickled or serialised, so it cannot reach
    a log, an event, a report or a bundle by accident.
    """

    __slots__ = ("_value",)

    def __init__(self, value: T) -> None:
        self._value = value

    def reveal(self) -> T:
        """The value itself; every call site is a place where private data is handled on purpose."""
        return self._value

    def __repr__(self) -> str:
        return "Private(...)"

    def __format__(self, spec: str) -> str:
        return "Private(...)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a private value is not serialised")


# --- records of private data --------------------------------------------------------------------------------------

RecordKind = Literal["chat", "completion", "text"]
ROLES: dict[str, tuple[str, ...]] = {
    "chat": ("system", "user", "assistant", "tool"),
    "completion": ("prompt", "completion"),
    "text": ("text",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One validated training example, with the unit of privacy it belongs to.

    Attributes:
      unit: identifier of the unit of privacy inside its dataset; for unit kind "record" every record has its own.
      kind: "chat" (system, user and assistant parts), "completion" (one prompt, one completion) or "text".
      parts: (role, text) pairs in order.
      fields: (column, value) pairs that were kept beside the text, for the filters of a curriculum; never trained on.
    """

    unit: str
    kind: RecordKind
    parts: tuple[tuple[str, str], ...]
    fields: tuple[tuple[str, str], ...] = ()

    def __repr__(self) -> str:
        return "Record(...)"

    def encode(self) -> bytes:
        """The bytes that are sealed: compact JSON. `decode(encode(r)) == r`."""
        content: dict[str, Any] = {"u": self.unit, "k": self.kind, "p": self.parts}
        return orjson.dumps(content | ({"f": self.fields} if self.fields else {}))

    @staticmethod
    def decode(data: bytes) -> Record:
        """The record that `encode` wrote. Raises `ValueError` (without the content) if `data` is something else."""
        try:
            raw = orjson.loads(data)
            parts = tuple((role, text) for role, text in raw["p"])
            fields = tuple((column, value) for column, value in raw.get("f", ()))
            return Record(unit=raw["u"], kind=raw["k"], parts=parts, fields=fields)
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError):
            raise ValueError("not an encoded record") from None


# --- what the ledger says, for rooms that do not see the ledger ----------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedEvent:
    """An entry of the ledger as reports and bundles see it: public values only.

    Attributes:
      index: place in the log.
      type: kind of event.
      time: RFC 3339, UTC.
      subject: id of what the event is about.
      policy_sha256: the policy in force.
      software: version and source digest of the software that wrote it.
      facts: the facts of the event, as in its leaf.
    """

    index: int
    type: str
    time: str
    subject: str | None
    policy_sha256: str | None
    software: dict[str, str]
    facts: dict[str, Any]


# --- pydantic values ------------------------------------------------------------------------------------------------


class Value(BaseModel):
    """Base of every value that is read from bytes: frozen, strict, no unknown keys."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Few = Annotated[int, Field(ge=1, le=64)]
"""Machines of a run, and ranks of a machine."""
RunId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
"""Names a directory, so it can be no path."""


class UnitOfPrivacy(Value):
    """Whose presence is hidden: one record, or all records of one subject, capped by a public rule."""

    kind: Literal["record", "subject"] = "record"
    key: str | None = None
    max_records: Count = 1


class Filter(Value):
    """Which records a phase trains on: those whose kept `field` has one of the values. It reads one record alone."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    field: Annotated[str, Field(min_length=1, max_length=128)]
    values: Annotated[
        tuple[Annotated[str, Field(max_length=64)], ...],
        Field(min_length=1, max_length=32, validation_alias="in", serialization_alias="in"),
    ]

    def selects(self, record: Record) -> bool:
        """Whether the record has one of the values; a record without the field has none."""
        return any(column == self.field and value in self.values for column, value in record.fields)


class Phase(Value):
    """A part of a curriculum: so many steps with a sample rate of their own, on some or all of the records.

    `declared_units` is how many units the operator declares to have a matching record. Like everything here it is
    public: a number that somebody stated, never one that was counted.
    """

    name: str
    steps: Count
    declared_units: Count
    expected_batch_size: Count
    where: Filter | None = None

    @property
    def sample_rate(self) -> Fraction:
        """Probability that a unit with a matching record is in a logical batch of this phase, exact."""
        return Fraction(self.expected_batch_size, self.declared_units)


class PrivacyPlan(Value):
    """The one object from which sampler, clip, noise and accountant are built, so that they cannot disagree.

    `epsilon` at `delta` is stated for `attempts` = `steps` + `spare_steps` sampled steps. All fields are public and
    none is derived from the private data: `declared_units` is the data owner's statement.

    With a curriculum, `phases` follow each other and share out the steps. The phase of an attempt follows from its
    number alone, so the accounting of n attempts needs nothing but n: a step that is lost is made up in the last phase.
    """

    unit: UnitOfPrivacy
    neighbouring: Literal["add-or-remove-one"] = "add-or-remove-one"
    declared_units: Count
    expected_batch_size: Count
    steps: Count
    spare_steps: Annotated[int, Field(ge=0)]
    max_grad_norm: Positive
    clipping: Literal["fixed", "normalised"]
    noise_multiplier: Positive
    epsilon: Positive
    delta: Annotated[float, Field(gt=0, lt=1)]
    sampler_delta: Annotated[float, Field(ge=0, lt=1)]
    accountant: Literal["pld"] = "pld"
    rng: Literal["os-csprng"] = "os-csprng"
    phases: tuple[Phase, ...] = ()

    @model_validator(mode="after")
    def _phases_share_the_steps(self) -> Self:
        if self.phases and sum(phase.steps for phase in self.phases) != self.steps:
            raise ValueError("the phases do not share out the steps")
        if any(not phase.expected_batch_size <= phase.declared_units <= self.declared_units for phase in self.phases):
            raise ValueError("a phase has a batch above its declared units, or more of them than the dataset")
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A plan without a curriculum has the bytes, and so the digest, that it had before there were any.
        dumped: dict[str, Any] = handler(self)
        return dumped if self.phases else {name: value for name, value in dumped.items() if name != "phases"}

    @property
    def schedule(self) -> tuple[Phase, ...]:
        """The phases in order; a plan without a curriculum has one, of all steps on all records."""
        batch, units = self.expected_batch_size, self.declared_units
        one = Phase(name="", steps=self.steps, declared_units=units, expected_batch_size=batch)
        return self.phases or (one,)

    @property
    def sample_rate(self) -> Fraction:
        """Probability that a unit is in a logical batch, exact; of a curriculum the largest of its phases."""
        return max(phase.sample_rate for phase in self.schedule)

    @property
    def attempts(self) -> int:
        """How many sampled steps are reserved, spare ones included."""
        return self.steps + self.spare_steps

    def phase_at(self, attempt: int) -> int:
        """Which phase the n-th attempt (from 1) belongs to, as an index into `schedule`. Spare ones extend the last."""
        end = 0
        for index, phase in enumerate(self.schedule[:-1]):
            end += phase.steps
            if attempt <= end:
                return index
        return len(self.schedule) - 1

    def rates(self, attempts: int, after: int = 0) -> list[tuple[Fraction, int]]:
        """(sample rate, attempts) of the attempts `after` + 1 to `attempts`, in order, equal neighbours merged.

        Attempts beyond the reservation, which no correct worker makes, count at the largest rate.
        """
        ends = [*accumulate(phase.steps for phase in self.schedule[:-1]), self.attempts, max(attempts, self.attempts)]
        rates = [*(phase.sample_rate for phase in self.schedule), self.sample_rate]
        found: list[tuple[Fraction, int]] = []
        for start, end, rate in zip([0, *ends], ends, rates, strict=False):
            count = min(end, attempts) - max(start, after)
            if count > 0 and found and found[-1][0] == rate:
                found[-1] = (rate, found[-1][1] + count)
            elif count > 0:
                found.append((rate, count))
        return found


OUTPUT_HEADS = ("lm_head", "embed_out", "score")
# Projections of attention by the names Llama, Qwen, Mistral and DeepSeek (MLA) give them.
ATTENTION = (
    *("q_proj", "k_proj", "v_proj", "o_proj"),
    *("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"),
)


class LoraSpec(Value):
    """Which low-rank adapter is trained: delta W = (alpha / r) B A on every target module."""

    r: Count = 8
    alpha: Positive = 16.0
    targets: Literal["all-linear", "attention"] | tuple[str, ...] = "all-linear"
    freeze_a: bool = False
    quantize_base: Literal["none", "nf4", "int8"] = "none"

    def trainable(self, shapes: Mapping[str, tuple[int, int]]) -> int:
        """Size of the adapter on linear modules of these (out, in) shapes; a frozen A does not count."""
        chosen = [shape for name, shape in shapes.items() if self.selects(name)]
        return sum(self.r * (out + (0 if self.freeze_a else into)) for out, into in chosen)

    def selects(self, module: str) -> bool:
        """Whether the linear module of this dotted name is adapted. The output head never is."""
        if module.rsplit(".", 1)[-1] in OUTPUT_HEADS:
            return False
        if self.targets == "all-linear":
            return True
        wanted = ATTENTION if self.targets == "attention" else self.targets
        return any(module == name or module.endswith("." + name) for name in wanted)


class TrainSpec(Value):
    """Optimisation settings. None of them changes the privacy guarantee."""

    lr: Positive
    max_tokens: Count
    init_seed: Annotated[int, Field(ge=0)] = 7
    train_on: Literal["completion", "all"] = "completion"
    template: Literal["base", "none"] = "base"


class EngineOptions(Value):
    """How the computation is done. By construction none of these can change the privacy plan.

    Attributes:
      gradient_bytes: of per-record gradients that exist at once. It is public and stands in the job, so it is the same
        whenever and wherever the run goes on: the row count of a micro-batch follows from it.
      cuda_graphs: micro-batches whose shape comes again are replayed; more memory, less work for the host.
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


class IsolationSpec(Value):
    """What the policy demands of the worker's sandbox."""

    network: Literal["required", "preferred"] = "required"
    files: Literal["required", "preferred"] = "preferred"


class SealedObject(Value):
    """A sealed object in the store: where it lies and how it is recognised."""

    dataset_id: str
    path: str
    blake3: Digest
    wrapped_key: str
    key_epoch: Count


class TrainJob(Value):
    """`job.json` of a training run: everything the worker needs, all of it public."""

    schema_: Literal["appliance.job/1"] = Field("appliance.job/1", alias="schema")
    kind: Literal["train"] = "train"
    run_id: RunId
    plan: PrivacyPlan
    lora: LoraSpec
    train: TrainSpec
    engine: EngineOptions
    isolation: IsolationSpec
    model_dir: str
    model_sha256: Digest
    dataset: SealedObject
    agent_socket: str


class Rendezvous(Value):
    """Where the ranks of a run on several machines meet, and which of them one machine starts. All of it is public.

    Attributes:
      host: numeric address at which the first rank listens.
      port: its port.
      nonce: of the entry that started the run; ranks of another start do not meet these.
      first: number of the first rank on this machine.
      size: how many ranks there are on all machines.
      timeout_s: how long a rank waits until all have come.
      here: address of this machine; filled in there.
      node: directory with the node's private key, on a machine that was given a ticket; filled in there.
    """

    host: str
    port: Annotated[int, Field(ge=1, le=65535)]
    nonce: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    first: Annotated[int, Field(ge=0)]
    size: Annotated[int, Field(ge=1, le=64 * 64)]
    timeout_s: Positive
    here: str = ""
    node: str = ""


class Ticket(Value):
    """What one node needs to join one start of a run. Public, but for the dataset's key, which is sealed to the node.

    The key opens only together with all the rest (`store.nodes`). In `job` the paths and the wrapped key are empty:
    object and model are known by their digests, wherever they lie. Whoever knows the node's public key can write one,
    so nothing in it may reach further than a run does: no path, no more ranks than a machine may have, not the first.
    """

    schema_: Literal["appliance.ticket/1"] = Field("appliance.ticket/1", alias="schema")
    node: Digest
    rendezvous: Rendezvous
    ranks: Few
    job: TrainJob
    sealed: str

    @model_validator(mode="after")
    def _ranks_of_a_node(self) -> Self:
        if not 1 <= self.rendezvous.first <= self.rendezvous.size - self.ranks:
            raise ValueError("the ranks are not those of a node of this run")
        return self

    def context(self) -> str:
        """SHA-256 (hex) of the ticket without its key: what the key is sealed with."""
        return hashlib.sha256(to_json(self.model_copy(update={"sealed": ""}))).hexdigest()


class ImportJob(Value):
    """`job.json` of a model import: a foreign directory or GGUF file in, a verified safetensors directory out."""

    schema_: Literal["appliance.job/1"] = Field("appliance.job/1", alias="schema")
    kind: Literal["model-import"] = "model-import"
    run_id: str
    source: str
    output_dir: str
    isolation: IsolationSpec


class AccountJob(Value):
    """`job.json` of a settlement without a result: what do both accountants say of so many attempts?"""

    schema_: Literal["appliance.job/1"] = Field("appliance.job/1", alias="schema")
    kind: Literal["account"] = "account"
    run_id: str
    plan: PrivacyPlan
    attempts: Annotated[int, Field(ge=0)]


class IsolationReport(Value):
    """What the sandbox of a worker really reached."""

    network: str
    files: str
    core_dumps: str


class PrivacySpent(Value):
    """What an accountant says of `attempts` steps, epsilon rounded up."""

    attempts: Annotated[int, Field(ge=0)]
    epsilon_pld: float
    epsilon_prv: float
    epsilon_rdp: float
    delta: float


class TrainResult(Value):
    """`result.json` of a finished training run. Public values only."""

    schema_: Literal["appliance.result/1"] = Field("appliance.result/1", alias="schema")
    kind: Literal["train"] = "train"
    run_id: str
    attempts: int
    steps: int
    spent: PrivacySpent
    adapter_sha256: Digest
    trainable_parameters: int
    isolation: IsolationReport
    libraries: dict[str, str]


class ModelFile(Value):
    """One file of a base model: relative path, size in bytes, SHA-256."""

    path: str
    bytes: int
    sha256: Digest


class ImportResult(Value):
    """`result.json` of a model import. `shapes` maps a linear module's name to (out_features, in_features)."""

    schema_: Literal["appliance.result/1"] = Field("appliance.result/1", alias="schema")
    kind: Literal["model-import"] = "model-import"
    run_id: str
    sha256: Digest
    files: tuple[ModelFile, ...]
    source_format: Literal["safetensors", "gguf"]
    source_sha256: Digest
    architecture: str
    parameters: int
    licence: str
    has_chat_template: bool
    shapes: dict[str, tuple[int, int]]
    isolation: IsolationReport
    libraries: dict[str, str]


class Check(Value):
    """One check of the engine self-test: what was seen, beside the bound it had to keep, both as decimal text."""

    name: str
    passed: bool
    value: str
    bound: str
    count: Annotated[int, Field(ge=0)]


class SelftestJob(Value):
    """`job.json` of an engine self-test: the job of a run without its data."""

    schema_: Literal["appliance.job/1"] = Field("appliance.job/1", alias="schema")
    kind: Literal["selftest"] = "selftest"
    run_id: str
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


class SelftestResult(Value):
    """`result.json` of a self-test. Everything in it comes from synthetic data."""

    schema_: Literal["appliance.result/1"] = Field("appliance.result/1", alias="schema")
    kind: Literal["selftest"] = "selftest"
    run_id: str
    passed: bool
    checks: tuple[Check, ...]
    isolation: IsolationReport
    libraries: dict[str, str]
    rate: GpuRate | None = None


class WatermarkKey(Value):
    """A watermark key as it lies in the catalog, wrapped, with the commitment to it."""

    key_id: str
    commitment: Digest
    wrapped_key: str
    key_epoch: Count


class EmbedJob(Value):
    """`job.json` of embedding a watermark in the adapter of a run."""

    schema_: Literal["appliance.job/1"] = Field("appliance.job/1", alias="schema")
    kind: Literal["watermark-embed"] = "watermark-embed"
    run_id: str
    engine: EngineOptions
    isolation: IsolationSpec
    model_dir: str
    model_sha256: Digest
    adapter_dir: str
    adapter_sha256: Digest
    key: WatermarkKey
    agent_socket: str


class EmbedResult(Value):
    """`result.json` of an embedding. Scores and strength are decimal text."""

    schema_: Literal["appliance.result/1"] = Field("appliance.result/1", alias="schema")
    kind: Literal["watermark-embed"] = "watermark-embed"
    run_id: str
    released_sha256: Digest
    escrow_sha256: Digest
    certificate_sha256: Digest
    algorithm_sha256: Digest
    strength: str
    modules: Count
    score: str
    score_predicted: dict[str, str]
    p_bound: str
    isolation: IsolationReport
    libraries: dict[str, str]


class DetectJob(Value):
    """`job.json` of looking for the watermark of a run in a suspect adapter or model."""

    schema_: Literal["appliance.job/1"] = Field("appliance.job/1", alias="schema")
    kind: Literal["watermark-detect"] = "watermark-detect"
    run_id: str
    engine: EngineOptions
    isolation: IsolationSpec
    model_dir: str
    model_sha256: Digest
    suspect: str
    escrow: str
    escrow_sha256: Digest
    keys_tested: Count
    key: WatermarkKey
    agent_socket: str


class DetectResult(Value):
    """`result.json` of a detection."""

    schema_: Literal["appliance.result/1"] = Field("appliance.result/1", alias="schema")
    kind: Literal["watermark-detect"] = "watermark-detect"
    run_id: str
    suspect_sha256: Digest
    suspect_kind: Literal["adapter", "model"]
    score: str
    p_bound: str
    detected: bool
    certificate_sha256: Digest
    isolation: IsolationReport
    libraries: dict[str, str]


class EvaluateJob(Value):
    """`job.json` of an evaluation: template, lengths and base model are those of the run's own job."""

    schema_: Literal["appliance.job/1"] = Field("appliance.job/1", alias="schema")
    kind: Literal["evaluate"] = "evaluate"
    run_id: str
    evaluation_id: str
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


class EvaluateResult(Value):
    """`result.json` of an evaluation: the noised sum over private data, and figures of public text as decimal text."""

    schema_: Literal["appliance.result/1"] = Field("appliance.result/1", alias="schema")
    kind: Literal["evaluate"] = "evaluate"
    run_id: str
    evaluation_id: str
    released: tuple[int, ...]
    public: dict[str, str]
    isolation: IsolationReport
    libraries: dict[str, str]


class RankResult(Value):
    """What a rank other than the first leaves when it is done."""

    schema_: Literal["appliance.rank/1"] = Field("appliance.rank/1", alias="schema")
    rank: Count


class Failure(Value):
    """`result.json` of a job that refused or failed: an `ApplianceError` as data."""

    schema_: Literal["appliance.failure/1"] = Field("appliance.failure/1", alias="schema")
    error: str
    message: str
    hint: str = ""
    where: str = ""


def decimal(value: float) -> str:
    """A float as the ledger writes it: the shortest decimal text that reads back as the same float, no exponent."""
    return format(Decimal(repr(float(value))), "f")


def rounded_up(epsilon: float) -> str:
    """Epsilon as it is charged: a decimal text with four places, never below the float."""
    return str(Decimal(repr(float(epsilon))).quantize(Decimal("0.0001"), ROUND_CEILING))


def to_json(value: BaseModel) -> bytes:
    """Canonical bytes of a pydantic value: sorted keys, compact, a newline at the end."""
    dumped: Any = value.model_dump(mode="json", by_alias=True)
    return orjson.dumps(dumped, option=orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE)
