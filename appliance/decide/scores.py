"""A file of scores: one scale for all, weights that sum to one, and for each score an entry of the ledger, or none."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from appliance.policy.parse import parse_value
from appliance.values import Line, Value, Word

MOST_OPTIONS = 50
STARS = "★☆⭐✩✪✭*"


def _decimal(given: Any) -> Decimal:
    """Read a number exactly as it is written. Raises ValueError, which says why stars are none."""
    if isinstance(given, str) and given and set(given) <= set(STARS):
        raise ValueError(f"{len(given)} stars are no number: of how many, three or five? Write it as one on the scale")
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise ValueError("must be a number on the scale")
    return Decimal(repr(given))


Number = Annotated[Decimal, BeforeValidator(_decimal)]


class Scale(Value):
    """The one scale of every score; `high` is best."""

    low: Number
    high: Number

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError("the scale's low end is not below its high end")
        return self


class Score(Value):
    """A score, and the entry of the ledger from which it follows; without one it is asserted.

    Attributes:
      entry: index of the entry.
      type: what the entry must be, such as `serving.measured`.
      why: how the score follows from it.
    """

    score: Number
    entry: Annotated[int, Field(ge=0)] | None = None
    type: str = ""
    why: Line | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.entry is None) != (self.type == ""):
            raise ValueError("evidence is an entry and its type, for example entry: 12, type: serving.measured")
        return self


class Option(Value):
    """Something that may be chosen, with a score for every criterion."""

    name: Line
    scores: dict[Word, Score]


class Scores(Value):
    """A file of scores."""

    schema_: Literal[1] = Field(default=1, validation_alias="schema", serialization_alias="schema")
    scale: Scale
    weights: dict[Word, Number]
    options: tuple[Option, ...]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not 2 <= len(self.options) <= MOST_OPTIONS:
            raise ValueError(f"there must be 2 to {MOST_OPTIONS} options")
        if any(weight < 0 for weight in self.weights.values()):
            raise ValueError("a weight is negative")
        if (total := sum(self.weights.values())) != 1:
            raise ValueError(f"the weights sum to {total}, and must sum to 1")
        if len({option.name for option in self.options}) != len(self.options):
            raise ValueError("two options have one name")
        for option in self.options:
            _check(option, self.weights, self.scale)
        return self


def _check(option: Option, weights: dict[str, Decimal], scale: Scale) -> None:
    if set(option.scores) != set(weights):
        differ = ", ".join(sorted(set(option.scores) ^ set(weights)))
        raise ValueError(f"{option.name}: scores and weights are not of the same criteria: {differ}")
    for name, score in option.scores.items():
        if not scale.low <= score.score <= scale.high:
            raise ValueError(
                f"{option.name}: {name} is {score.score}, outside the scale {scale.low} to {scale.high}: "
                "scores of another scale must be converted, and said to be"
            )


def read(data: bytes, where: str) -> Scores:
    """Read a file of scores. Raises `ConfigInvalid`, with file, line and key."""
    return parse_value(Scores, data, where)
