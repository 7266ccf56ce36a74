"""The privacy plan: unit of privacy, phases, and the one object from which the mechanism is built."""

from __future__ import annotations

from enum import StrEnum
from fractions import Fraction
from itertools import accumulate
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from appliance.jobs.record import Record
from appliance.values import Count, Positive, Value, is_none


class UnitKind(StrEnum):
    """Whose presence is hidden: that of a record, or of everything of one subject."""

    RECORD = "record"
    SUBJECT = "subject"


class UnitOfPrivacy(Value):
    """Whose presence is hidden: one record, or all records of one subject, capped by a public rule.

    Attributes:
      kind: of whom.
      key: what names a subject: a column, or the place of the file.
      max_records: most records of a subject.
      split: of plain text, what one record is: `file`, `paragraph`, `line` or `N-tokens`.
    """

    kind: Annotated[UnitKind, Field(strict=False)] = UnitKind.RECORD
    key: str | None = None
    max_records: Count = 1
    split: Annotated[str, Field(pattern=r"^(file|paragraph|line|[1-9][0-9]{0,6}-tokens)$")] | None = Field(
        default=None, exclude_if=is_none
    )


class Filter(Value):
    """Which records a phase trains on: those whose kept `field` has one of the values. It reads one record alone."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    field: Annotated[str, Field(min_length=1, max_length=128)]
    values: Annotated[
        tuple[Annotated[str, Field(max_length=64)], ...],
        Field(min_length=1, max_length=32, validation_alias="in", serialization_alias="in"),
    ]

    def selects(self, record: Record) -> bool:
        """Tell whether the record has one of the values; a record without the field has none."""
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
        """Find the phase of the n-th attempt (from 1), as an index into `schedule`. Spare ones extend the last."""
        end = 0
        for index, phase in enumerate(self.schedule[:-1]):
            end += phase.steps
            if attempt <= end:
                return index
        return len(self.schedule) - 1

    def rates(self, attempts: int, after: int = 0) -> list[tuple[Fraction, int]]:
        """List (sample rate, attempts) of the attempts `after` + 1 to `attempts`, in order, equal neighbours merged.

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
