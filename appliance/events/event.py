"""What an event is: its facts and their types, what it is about, and where it is told.

    class RunAborted(Event):
        type: ClassVar = "run.aborted"
        about: ClassVar = "run_id"
        told: ClassVar = Told.BUNDLE | Told.REPORT

        run_id: Id
        attempts: Whole

Facts are public: they stand in a leaf for ever, and whoever reads the ledger sees them. A fact is never renamed or
removed, nor is its type narrowed: old ledgers must be read by new releases. A new fact is `optional()`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Flag, auto
from typing import Annotated, Any, ClassVar, Self

from pydantic import ConfigDict, Field, ModelWrapValidatorHandler, ValidationError, model_validator

from appliance import values
from appliance.errors import ApplianceError

Digest = Annotated[values.Digest, Field(title="digest")]
Id = Annotated[str, Field(min_length=1, max_length=200, title="id")]
Text = Annotated[str, Field(title="text")]
Time = Annotated[str, Field(title="time")]
Whole = Annotated[int, Field(ge=0, title="whole number")]
Number = Annotated[str, Field(pattern=r"^-?[0-9]+(\.[0-9]+)?$", title="decimal text")]
Rate = Annotated[str, Field(pattern=r"^[0-9]+/[0-9]+$", title="fraction")]
Nonce = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$", title="32 hex digits")]


class LeafInvalid(ApplianceError):
    """A value that cannot stand in the ledger was about to be written: a bug of the caller."""


class Told(Flag):
    """Where an entry is told beside the ledger: in a bundle, to whoever is given it; in a report, to auditors."""

    INSIDE = 0
    BUNDLE = auto()
    REPORT = auto()


def optional() -> Any:
    """Mark a fact that an entry need not state."""
    return Field(default=None)


class Facts(values.Value):
    """Facts that belong together, as a part of an event."""

    model_config = ConfigDict(
        defer_build=True, validate_by_name=True, validate_by_alias=True, hide_input_in_errors=True
    )

    @model_validator(mode="wrap")
    @classmethod
    def _explained(cls, facts: Any, build: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return build(facts)
        except ValidationError as wrong:
            problems = wrong.errors(include_input=False, include_url=False, include_context=False)
            raise LeafInvalid(f"{cls.__name__}: {', '.join(map(_problem, problems))}") from None


def _problem(problem: Any) -> str:
    """Say one problem in words, without the value that has it."""
    place = "/".join(str(part) for part in problem["loc"])
    return f"{place} {problem['type'].replace('_', ' ')}"


class Event(Facts):
    """An entry of the ledger as it is built: made whole and well typed, or not at all.

    Attributes:
      type: its name, NOUN.PAST.
      about: the fact that names what it is about, so that it is found again; empty for none.
      told: where it is told outside of the ledger.
      opens: the fact that names whose key the key agent releases for it; empty for most.
      charges: whether it closes work that is charged to the dataset which it names.
    """

    type: ClassVar[str]
    about: ClassVar[str] = ""
    told: ClassVar[Told] = Told.INSIDE
    opens: ClassVar[str] = ""
    charges: ClassVar[bool] = False

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Self:
        """Build it from facts as they stand in a leaf. Raises `LeafInvalid`."""
        return cls.model_validate(facts)

    def facts(self) -> dict[str, Any]:
        """Give the facts as they stand in the leaf: JSON values, without those that are not stated."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)

    @property
    def subject(self) -> str | None:
        """What it is about."""
        return str(getattr(self, self.about)) if self.about else None


class Refusal(Event):
    """Something was refused: exit status, class of the error, and a sentence of public values.

    Before there was an `error` the class could stand in `reason`.
    """

    code: Whole
    reason: Text
    error: Text = optional()
