"""Numbers with units, exactly: "1.89 USD/h", "6.5 kW", "2500 tok/s", each perhaps between two others."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from pydantic import BeforeValidator

_TEXT = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,10})?) +(\S.*)", re.ASCII)
_RANGE = ("value", "low", "high")


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number of some unit, which is between two others; both are itself where it is known exactly."""

    value: Decimal
    low: Decimal
    high: Decimal

    @property
    def uncertain(self) -> bool:
        """Whether it is not known exactly."""
        return self.low != self.high


def of(unit: str) -> BeforeValidator:
    """Make what reads a quantity in a file: text such as "2 UNIT", or `{value: 2 UNIT, low: 1 UNIT, high: 3 UNIT}`."""
    return BeforeValidator(lambda given: _read(given, unit))


def _read(given: Any, unit: str) -> Quantity:
    """Read a quantity. Raises ValueError, whose sentence says what to write."""
    if isinstance(given, Quantity):
        return given
    if not isinstance(given, dict):
        number = _number(given, unit)
        return Quantity(number, number, number)
    if set(given) != set(_RANGE):
        raise ValueError(f"a range has value, low and high, each in {unit}")
    value, low, high = (_number(given[name], unit) for name in _RANGE)
    if not low <= value <= high:
        raise ValueError("the value is not between low and high")
    return Quantity(value, low, high)


def _number(given: Any, unit: str) -> Decimal:
    if isinstance(given, int | float) and not isinstance(given, bool):
        raise ValueError(f"{given} has no unit: write '{given} {unit}'")
    match = _TEXT.fullmatch(given) if isinstance(given, str) else None
    if match is None:
        raise ValueError(f"not a number with its unit, which is {unit}: write for example '1.50 {unit}'")
    if match[2] != unit:
        raise ValueError(f"the unit is {match[2][:20]}, and must be {unit}: convert it, nothing is converted here")
    return Decimal(match[1])
