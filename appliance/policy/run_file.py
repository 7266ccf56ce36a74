"""run.yaml: what the operator asks for. `parse(render(x))` gives `x`, and the rendering explains every key."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from appliance.jobs.lora import LoraSpec
from appliance.jobs.plan import Filter, UnitOfPrivacy
from appliance.jobs.train import TrainSpec
from appliance.names import is_unruly
from appliance.policy import yaml
from appliance.policy.parse import parse_value
from appliance.values import Count, Digest, Positive, Value, Word

LARGEST_SCALE = 1000
"""Of an adapter (alpha / r). More is a slip that shows only in training, after the budget was reserved."""


class BaseChoice(Value):
    """The base model, by name and by digest."""

    id: Word
    sha256: Digest


class DataChoice(Value):
    """The dataset; `unit`, where given, must be the unit it was ingested with."""

    id: Word
    unit: UnitOfPrivacy | None = None


TemplateSource = Literal["base", "fallback", "none"]


class TemplateChoice(Value):
    """How a record becomes tokens, and which of them are learned."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    from_: TemplateSource = Field(default="base", validation_alias="from", serialization_alias="from")
    train_on: Literal["completion", "all"] = "completion"


class PhaseChoice(Value):
    """One phase of a curriculum: its share of the steps, and which records it trains on."""

    name: Word | None = None
    ratio: Annotated[float, Field(gt=0, le=1)]
    units: Count | None = None
    expected_batch_size: Count | None = None
    where: Filter | None = None

    @model_validator(mode="after")
    def _declared(self) -> Self:
        if self.where is not None and self.units is None:
            raise ValueError("a phase with 'where' needs 'units': about how many units have a matching record")
        if self.where is not None and any(map(is_unruly, (self.where.field, *self.where.values))):
            raise ValueError("'where' has characters that cannot be shown")
        return self


class TrainChoice(Value):
    """Length and optimisation of the run. Exactly one of `steps` and `epochs` is given."""

    steps: Count | None = None
    epochs: Positive | None = None
    expected_batch_size: Count
    max_tokens: Count = 512
    lr: Annotated[float, Field(gt=0, le=10)] = 5e-4
    init_seed: Annotated[int, Field(ge=0)] = 7
    spare_steps: Annotated[int, Field(ge=0)] = 2

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either 'steps' or 'epochs', and not both")
        return self


class PrivacyChoice(Value):
    """The guarantee that is asked for."""

    epsilon: Positive
    delta: Literal["auto"] | Annotated[float, Field(gt=0, lt=1)] = "auto"
    max_grad_norm: Positive = 1.0
    clipping: Literal["fixed", "normalised"] = "normalised"
    accountant: Literal["pld"] = "pld"


class EngineChoice(Value):
    """How the run is computed. None of it can change the guarantee."""

    physical_tokens: Annotated[int, Field(ge=8)] | None = None
    gradient_checkpointing: bool = False
    gradient_dtype: Literal["float32", "bfloat16"] = "float32"


class GateChoice(Value):
    """What an artefact of one format has to hold, or it is not written."""

    max_loss: Annotated[float, Field(ge=0, le=100)]


class GatesChoice(Value):
    """The gates, by the formats of `model merge` and `model quantize`; one that is not named has none."""

    merged: GateChoice | None = None
    int8: GateChoice | None = None
    nf4: GateChoice | None = None
    q8_0: GateChoice | None = None
    q4_1: GateChoice | None = None
    q4_0: GateChoice | None = None

    def max_losses(self) -> dict[str, float]:
        """List what each named format may lose, in percentage points of accuracy."""
        return {name: gate.max_loss for name, gate in self if gate is not None}


class RunFile(Value):
    """A whole run file."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    schema_: Literal[1] = Field(default=1, validation_alias="schema", serialization_alias="schema")
    name: Word
    base: BaseChoice
    data: Annotated[tuple[DataChoice, ...], Field(min_length=1, max_length=1)]
    template: TemplateChoice = TemplateChoice()
    curriculum: Annotated[tuple[PhaseChoice, ...], Field(max_length=16)] = ()
    lora: LoraSpec = LoraSpec()
    train: TrainChoice
    privacy: PrivacyChoice
    engine: EngineChoice = EngineChoice()
    gates: GatesChoice = GatesChoice()

    @model_validator(mode="after")
    def _adapts_in_bounds(self) -> Self:
        if self.lora.alpha > LARGEST_SCALE * self.lora.r:
            raise ValueError(f"'lora.alpha' is more than {LARGEST_SCALE} times 'lora.r', by which it is divided")
        return self

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [phase.name or f"phase-{number}" for number, phase in enumerate(self.curriculum, start=1)]
        if len(set(names)) != len(names):
            raise ValueError("two phases of the curriculum have the same name")
        return self

    @property
    def dataset(self) -> DataChoice:
        """The one dataset of the run."""
        return self.data[0]

    @property
    def delta(self) -> float | None:
        """Delta as a number, or None where it follows from the declared units ("auto")."""
        return None if self.privacy.delta == "auto" else self.privacy.delta

    @property
    def train_spec(self) -> TrainSpec:
        """The settings that go to the worker and do not touch the guarantee."""
        train, template = self.train, self.template
        return TrainSpec(
            lr=train.lr,
            max_tokens=train.max_tokens,
            init_seed=train.init_seed,
            train_on=template.train_on,
            template=template.from_,
        )

    def steps(self, declared_units: int) -> int:
        """Count the sampled steps: as given, or epochs x declared units / expected batch size, rounded up."""
        if self.train.steps is not None:
            return self.train.steps
        return math.ceil(Fraction(self.train.epochs or 0) * declared_units / self.train.expected_batch_size)


def parse(data: bytes, where: str) -> RunFile:
    """Read a run file.

    Args:
      data: the bytes of the file.
      where: its name, for messages.

    Raises:
      ConfigInvalid: with file, line and key.
    """
    return parse_value(RunFile, data, where)


# One line for each key: what it does, and what it costs.
_EXPLAINED = {
    "schema": "version of this file's format",
    "name": "name of the run in the ledger and in reports; started again, a file goes on with the run of this name",
    "base": "base model; it stays frozen and only the adapter is trained",
    "base.id": "its id in the catalog (`appliance model list`)",
    "base.sha256": "its digest; if the imported model differs the run is refused",
    "data": "what is trained on: exactly one dataset",
    "data.id": "its id in the catalog (`appliance data list`); its lifetime budget pays for the run",
    "data.unit": "whose presence is hidden; it was fixed at ingest and is repeated here to be checked",
    "data.unit.kind": "record: one row; subject: everything of one person, which protects more and needs more data",
    "data.unit.key": "column that names the subject",
    "data.unit.max_records": "records kept of each subject; more keeps more data and costs nothing in epsilon",
    "template": "how a record becomes tokens",
    "template.from": "base: the model's chat template; fallback: where it does not fit, plain text; none: plain text",
    "template.train_on": "completion: only the answer is learned; all: the prompt too, which spends capacity on it",
    "curriculum": "phases that follow each other; each samples at a rate of its own and they add up in the accounting",
    "curriculum.name": "its name in the ledger and in reports",
    "curriculum.ratio": "its share of the steps; the shares add up to 1",
    "curriculum.units": "about how many units have a matching record: declare a public, round number, never count",
    "curriculum.expected_batch_size": "units sampled per step of this phase; left out: as under train",
    "curriculum.where": "train on the records whose field has one of these values; left out: on all",
    "curriculum.where.field": "a column that was kept at ingest (`data ingest --keep COLUMN`)",
    "curriculum.where.in": "the values",
    "lora": "shape of the adapter",
    "lora.r": "rank; a larger one learns more, costs memory and time, and suffers more from the noise",
    "lora.alpha": "scale: the adapter is multiplied by alpha / r; no cost in privacy",
    "lora.targets": "all-linear, attention, or a list of module names; fewer is faster and less noisy",
    "lora.freeze_a": "true: only half of the adapter learns; fewer parameters, so less memory and less noise in all",
    "lora.quantize_base": "none; nf4 or int8: the base in a quarter or half of the memory, for accuracy and time",
    "train": "length and optimisation; none of it may be chosen by looking at the private data",
    "train.steps": "noisy steps; each costs privacy, so more of them at the same epsilon means more noise in each",
    "train.epochs": "passes over the declared units, turned into steps; each step costs privacy",
    "train.expected_batch_size": "units sampled per step on average; larger means less noise per step and more time",
    "train.max_tokens": "longer records are cut here; more tokens cost time and memory, not privacy",
    "train.lr": "learning rate; no cost by itself, but every further run to tune it is paid from the budget",
    "train.init_seed": "seed of the adapter's first weights only; sampling and noise have no seed",
    "train.spare_steps": "steps reserved for attempts lost in a crash; they raise the noise a little even if unused",
    "privacy": "the guarantee; all of it is reserved from the dataset's budget before the run starts",
    "privacy.epsilon": "smaller hides more and costs accuracy; it is what this run takes from the budget",
    "privacy.delta": "auto: 0.9 / (100 x declared units); a smaller number hides more and costs noise",
    "privacy.max_grad_norm": "largest influence of one unit on a step; the noise grows with it; leave it if normalised",
    "privacy.clipping": "normalised: every unit weighs about the same, nothing to tune; fixed: only large ones are cut",
    "privacy.accountant": "pld reserves; a second accountant checks it in the worker and the larger epsilon is charged",
    "engine": "how it is computed; memory and time follow it, the guarantee and the result do not",
    "engine.physical_tokens": "tokens computed at once; chosen to fit the memory of the machine that wrote this file",
    "engine.gradient_checkpointing": "true: layers are computed again in the backward pass; less memory, more time",
    "engine.gradient_dtype": "bfloat16: per-record gradients in half the memory, rounded before they are clipped",
    "gates": "what `model merge` and `model quantize` must hold; fixed once the run is reserved, and in the ledger",
}
for _format in GatesChoice.model_fields:
    _EXPLAINED[f"gates.{_format}"] = f"of {_format}; a format that is not named here has no gate"
    _EXPLAINED[f"gates.{_format}.max_loss"] = (
        "percentage points of accuracy on public text that it may lose, at the bad end of the 95 % interval"
    )
_HEADER = """\
# A run file: what `appliance train start` is asked to do. Edit it freely; it must fit inside the active policy,
# which is checked before any data are opened.
"""
_ALTERNATIVE = {"train.steps": "# epochs: 2  (instead of steps)", "train.epochs": "# steps: 100  (instead of epochs)"}


def render(run: RunFile) -> str:
    """Write `run` as YAML, every key under a line that says what it does and what it costs."""
    tree = run.model_dump(mode="json", by_alias=True, exclude_none=True)
    lines: list[str] = []
    for key, value in tree.items():
        if value not in ([], {}):
            lines += ["", *_entry(key, value, key, "")]
    return _HEADER + "\n".join(lines) + "\n"


def _entry(key: str, value: Any, path: str, indent: str) -> list[str]:
    lines = [f"{indent}# {_EXPLAINED[path]}"]
    if path in ("data", "curriculum"):
        return [*lines, f"{indent}{key}:", *(line for item in value for line in _item(item, path, indent + "  "))]
    if isinstance(value, dict):
        inner = [line for name, part in value.items() for line in _entry(name, part, f"{path}.{name}", indent + "  ")]
        return [*lines, f"{indent}{key}:", *inner]
    lines.append(f"{indent}{key}: {_write(value)}")
    if path in _ALTERNATIVE:
        lines.append(indent + _ALTERNATIVE[path])
    return lines


def _item(value: dict[str, Any], path: str, indent: str) -> list[str]:
    """Write one item of a list: its first key carries the dash, and the comment above it stays outside."""
    lines = [line for name, part in value.items() for line in _entry(name, part, f"{path}.{name}", indent + "  ")]
    return [indent + lines[0].lstrip(), f"{indent}- {lines[1].lstrip()}", *lines[2:]]


def _write(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(yaml.scalar(item) for item in value) + "]"
    return yaml.scalar(value)
