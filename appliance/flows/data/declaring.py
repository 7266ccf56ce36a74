"""What the data owner states about data, and how that is divided where a part of the units is held out."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import NamedTuple

from appliance.errors import UsageError
from appliance.events.states import Purpose
from appliance.ingest.ingestion import Side
from appliance.names import require_word

_PLACES = 4  # digits behind the point of a fraction; more would be a number that nobody means


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """What the data owner states about the data. All of it is public.

    Attributes:
      name: of the dataset.
      units: about how many units of privacy there are.
      class_name: class of data in the policy.
      purpose: what the data may be used for.
      held_out: fraction of the units that becomes a dataset for evaluation; 0 is none.
      held_out_name: name of that dataset; empty is the name with `-held-out` behind it.

    Raises:
      UsageError: a name or the class is not a word, or a part is to be held out from data that are not for training.
    """

    name: str
    units: int
    class_name: str = "default"
    purpose: Purpose = Purpose.TRAINING
    held_out: Fraction = Fraction(0)
    held_out_name: str = ""

    def __post_init__(self) -> None:
        require_word(self.name, "dataset")
        require_word(self.class_name, "class of data")
        if self.held_out_name:
            require_word(self.held_out_name, "dataset")
        if self.held_out_name and not self.held_out:
            raise UsageError("a name for held-out data is given, and nothing is held out", hint="say --held-out 10%")
        if self.held_out and self.purpose != Purpose.TRAINING:
            raise UsageError("data for evaluation are held out as they are", hint="leave --held-out or --purpose out")


class Part(NamedTuple):
    """What becomes one dataset: what is declared of it, and on which side its units are; None is all of them."""

    declared: Declaration
    side: Side | None


def read_fraction(said: str) -> Fraction:
    """Read the part that is held out, such as `10%` or `0.1`; empty is none. Raises `UsageError`."""
    if not said:
        return Fraction(0)
    percent = said.endswith("%")
    try:
        value = Fraction(Decimal(said.removesuffix("%"))) / (100 if percent else 1)
    except (InvalidOperation, ValueError, OverflowError):
        value = Fraction(0)
    if not 0 < value <= Fraction(1, 2) or (value * 10**_PLACES).denominator != 1:
        raise UsageError(f"--held-out {said} is not a part of the units", hint="from 0.01% to 50%, such as 10%")
    return value


def divide(declared: Declaration) -> tuple[Part, ...]:
    """Divide what is declared as the units are divided: by the public fraction, and by nothing that was counted."""
    if not declared.held_out:
        return (Part(declared, None),)
    held = round(declared.units * declared.held_out)
    rest = dataclasses.replace(declared, units=declared.units - held)
    name = declared.held_out_name or f"{declared.name}-held-out"
    apart = dataclasses.replace(
        declared, name=name, units=held, purpose=Purpose.EVALUATION, held_out=Fraction(0), held_out_name=""
    )
    return Part(rest, Side(declared.held_out, held_out=False)), Part(apart, Side(declared.held_out, held_out=True))
