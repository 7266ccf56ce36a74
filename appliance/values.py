"""What every room may hold: private and strict values, digests, decimals, and the bytes a value is written as.

Nothing here does I/O and nothing here is about one subject.
"""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal
from typing import Annotated, Any, Generic, NoReturn, TypeVar

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from appliance import names

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
        """Take the value itself; every call site is a place where private data is handled on purpose."""
        return self._value

    def __repr__(self) -> str:
        return "Private(...)"

    def __format__(self, spec: str) -> str:
        return "Private(...)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a private value is not serialised")


class Value(BaseModel):
    """Base of every value that is read from bytes: frozen, strict, no unknown keys."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Positive = Annotated[float, Field(gt=0)]
Word = Annotated[str, Field(pattern=names.WORD)]
"""The name of a run, dataset, model, policy or class of data."""
Line = Annotated[str, AfterValidator(names.line)]
"""One line of writing."""
Count = Annotated[int, Field(ge=1)]


class FileDigest(Value):
    """One file of a directory: its path below it, size in bytes, SHA-256."""

    path: str
    bytes: int
    sha256: Digest


def decimal(value: float) -> str:
    """Write a float as the ledger does: the shortest decimal text that reads back as the same float, no exponent."""
    return format(Decimal(repr(float(value))), "f")


def round_up(epsilon: float) -> str:
    """Round epsilon as it is charged: a decimal text with four places, never below the float."""
    return str(Decimal(repr(float(epsilon))).quantize(Decimal("0.0001"), ROUND_CEILING))


def is_none(value: object) -> bool:
    """Tell whether a field that older documents do not have is left out, so that their bytes stay as they are."""
    return value is None


def to_json(value: BaseModel) -> bytes:
    """Write a pydantic value canonically: sorted keys, compact, a newline at the end."""
    dumped: Any = value.model_dump(mode="json", by_alias=True)
    return orjson.dumps(dumped, option=orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE)
