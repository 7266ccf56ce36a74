"""A price file: dated, with its source, every number with its unit. Nothing has a price that the file does not give."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from appliance.decide.quantity import Quantity, of
from appliance.policy.parse import parse_value
from appliance.values import Count, Line, Value

MillionTokensAMonth = Annotated[Quantity, of("Mtok/month")]
DollarsAMillionTokens = Annotated[Quantity, of("USD/Mtok")]
DollarsAMonth = Annotated[Quantity, of("USD/month")]
Dollars = Annotated[Quantity, of("USD")]
Months = Annotated[Quantity, of("months")]
Kilowatts = Annotated[Quantity, of("kW")]
DollarsAKilowattHour = Annotated[Quantity, of("USD/kWh")]
Times = Annotated[Quantity, of("x")]
TokensASecond = Annotated[Quantity, of("tok/s")]
Percent = Annotated[Quantity, of("%")]
People = Annotated[Quantity, of("FTE")]


def _date(given: Any) -> date:
    if not isinstance(given, str):
        raise ValueError("a date is written as 2026-11-26")
    try:
        return date.fromisoformat(given)
    except ValueError:
        raise ValueError("a date is written as 2026-11-26") from None


class Use(Value):
    """What is asked of the model in a month."""

    prompt: MillionTokensAMonth
    answer: MillionTokensAMonth

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not self.prompt.low + self.answer.low > 0:
            raise ValueError("prompt and answer together must be more than 0")
        return self


class Offer(Value):
    """What a service that is paid by the token asks."""

    prompt: DollarsAMillionTokens
    answer: DollarsAMillionTokens
    fee: DollarsAMonth


class Machine(Value):
    """A machine of one's own, or as many as are needed.

    Attributes:
      hardware, residual: what it costs, and what it is worth at the end of its lifetime.
      hosting: room, network and support of one machine.
      power_busy, power_idle: of one machine at the wall.
      overhead: power of the building over that of the machine (PUE); 1.4 is written "1.4 x".
      throughput: tokens, prompts and answers together, that one machine handles at full load. Measure it.
      most_busy: the part of its time that it can be busy without requests waiting too long, in percent.
      staff: people who look after all machines together.
      salary: of one of them, with all that it costs the employer.
    """

    hardware: Dollars
    residual: Dollars
    lifetime: Months
    hosting: DollarsAMonth
    power_busy: Kilowatts
    power_idle: Kilowatts
    electricity: DollarsAKilowattHour
    overhead: Times
    throughput: TokensASecond
    most_busy: Percent
    staff: People
    salary: DollarsAMonth

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if not (self.throughput.low > 0 and self.lifetime.low > 0 and self.most_busy.low > 0):
            raise ValueError("throughput, lifetime and most_busy must be more than 0")
        if self.most_busy.high > 100:
            raise ValueError("most_busy is at most 100 %")
        if self.residual.high > self.hardware.low:
            raise ValueError("the machine is worth more at its end than it costs")
        if self.power_idle.high > self.power_busy.low:
            raise ValueError("the machine takes more power idle than busy")
        return self


class Prices(Value):
    """A price file.

    Attributes:
      dated: when its prices were asked for; after `valid_days` days it is stale.
      source: from whom they are.
    """

    schema_: Literal[1] = Field(default=1, validation_alias="schema", serialization_alias="schema")
    dated: Annotated[date, BeforeValidator(_date)]
    valid_days: Count = 90
    source: Line
    use: Use
    service: Offer
    own: Machine

    def stale(self, today: date) -> bool:
        """Tell whether its prices are too old to decide by."""
        return (today - self.dated).days > self.valid_days

    def uncertain(self) -> dict[str, Quantity]:
        """List the quantities that are not known exactly, by their place in the file."""
        parts = {"use": self.use, "service": self.service, "own": self.own}
        named = {
            f"{part}.{name}": getattr(value, name) for part, value in parts.items() for name in type(value).model_fields
        }
        return {name: quantity for name, quantity in named.items() if quantity.uncertain}


def read(data: bytes, where: str) -> Prices:
    """Read a price file. Raises `ConfigInvalid`, with file, line and key."""
    return parse_value(Prices, data, where)
