"""The business rows as frozen values, and their digests. A class of rows is a table: each field is a column of it.

Numbers that are not whole travel as decimal strings: a float has no canonical text and no place in a ledger.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from hashlib import sha256
from types import NoneType
from typing import Any, ClassVar, NamedTuple, TypeVar, get_args, get_type_hints

from appliance.errors import ApplianceError, IntegrityError
from appliance.events.states import CatalogState, EvaluationState, KeyState, PolicyState, Purpose, RunState
from appliance.jobs.plan import UnitKind
from appliance.ledger.canonical import LeafInvalid, encode

_TAG = b"appliance/ledger/row/v1\n"
_STORED = (str, int)

Value = str | int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogRow:
    """A row of one of the tables of the catalog; its first field is the key.

    Attributes:
      table: name of the table.
      unique: columns, besides the key, of which no two rows have the same value.
      since: revision of the database that has the table first.
    """

    table: ClassVar[str]
    unique: ClassVar[tuple[str, ...]] = ()
    since: ClassVar[str] = "0001"


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetRow(CatalogRow):
    """A dataset in the catalog. `overlaps` is a JSON list of dataset ids; `wrapped_key` is base64."""

    table: ClassVar = "dataset"
    unique: ClassVar = ("name",)

    id: str
    name: str
    purpose: Purpose
    class_: str
    unit_kind: UnitKind
    unit_key: str | None = None
    max_records: int
    declared_units: int
    format: str
    state: CatalogState
    object_blake3: str
    object_bytes: int
    chunks: int
    wrapped_key: str
    key_epoch: int
    overlaps: str = "[]"
    fingerprints_blake3: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRow(CatalogRow):
    """A base model. `files` and `shapes` are JSON texts."""

    table: ClassVar = "model"
    unique: ClassVar = ("sha256",)

    id: str
    sha256: str
    source_format: str
    source_sha256: str
    architecture: str
    parameters: int
    licence: str
    has_chat_template: bool
    files: str
    shapes: str
    state: CatalogState


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow(CatalogRow):
    """A run and what it reserved and spent. `plan` is a JSON text; epsilons and delta are decimal strings."""

    table: ClassVar = "run"

    id: str
    name: str
    dataset_id: str
    model_id: str
    state: RunState
    spec_sha256: str
    policy_sha256: str
    plan: str
    reserved_attempts: int
    recorded_attempts: int = 0
    recorded_head: str | None = None
    charged_attempts: int | None = None
    epsilon_reserved: str
    epsilon_charged: str | None = None
    epsilon_gap: str = "0"
    delta: str
    adapter_sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRow(CatalogRow):
    """A policy by the digest of its text."""

    table: ClassVar = "policy"

    sha256: str
    name: str
    text: str
    state: PolicyState


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRow(CatalogRow):
    """An evaluation on a held-out dataset and what it spends of that dataset's budget; numbers are decimal strings."""

    table: ClassVar = "evaluation"
    since: ClassVar = "0002"

    id: str
    run_id: str
    dataset_id: str
    state: EvaluationState
    policy_sha256: str
    declared_units: int
    noise_multiplier: str
    epsilon: str
    delta: str
    sampler_delta: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WatermarkKeyRow(CatalogRow):
    """A watermark key, wrapped under the epoch's key; `wrapped_key` is base64."""

    table: ClassVar = "watermark_key"
    since: ClassVar = "0002"

    id: str
    commitment: str
    wrapped_key: str
    key_epoch: int
    state: KeyState


ROWS: tuple[type[CatalogRow], ...] = (DatasetRow, ModelRow, RunRow, PolicyRow, EvaluationRow, WatermarkKeyRow)
Row = TypeVar("Row", bound=CatalogRow)


class ColumnOf(NamedTuple):
    """A field, the column that holds it, and what the column holds.

    Attributes:
      whole: a whole number; else text.
      nullable: or nothing.
      meaning: what the column means where that is a state or a boolean.
    """

    field: str
    name: str
    whole: bool
    nullable: bool
    meaning: type[StrEnum] | type[bool] | None


def _columns(kind: Any) -> tuple[ColumnOf, ...]:
    hints = get_type_hints(kind)
    return tuple(_column(field.name, hints[field.name]) for field in fields(kind))


def _column(field: str, hint: Any) -> ColumnOf:
    kinds = set(get_args(hint)) or {hint}
    nullable, (kind,) = NoneType in kinds, kinds - {NoneType}
    meaning = kind if issubclass(kind, (StrEnum, bool)) else None
    return ColumnOf(field, field.rstrip("_"), issubclass(kind, int), nullable, meaning)


COLUMNS = {kind: _columns(kind) for kind in ROWS}
"""The columns of each table, in the order of its fields."""


def to_columns(row: CatalogRow) -> dict[str, Value]:
    """Give the column values of a row, as they are stored: a boolean is 0 or 1, a state its word.

    Raises:
      ApplianceError: a state that does not exist.
    """
    values: dict[str, Value] = {}
    for field, column, _, _, meaning in COLUMNS[type(row)]:
        value = getattr(row, field)
        if meaning is bool:
            value = int(value)
        elif meaning is not None:
            value = _state(meaning, value, ApplianceError).value
        values[column] = value
    return values


def from_columns(kind: type[Row], columns: Mapping[Any, Any]) -> Row:
    """Give the row that has these column values; other columns are ignored.

    Raises:
      IntegrityError: a state that does not exist.
    """
    values: dict[str, Any] = {}
    for field, column, _, _, meaning in COLUMNS[kind]:
        value = columns[column]
        if meaning is bool:
            value = bool(value)
        elif meaning is not None:
            value = _state(meaning, value, IntegrityError)
        values[field] = value
    return kind(**values)


def _state(kind: type[StrEnum] | type[bool], value: Any, error: type[ApplianceError]) -> Any:
    try:
        return kind(value)
    except ValueError:
        raise error(f"there is no {kind.__name__} like the one of a row of the ledger") from None


def row_digest(table: str, columns: Mapping[str, Any]) -> str:
    """Digest a stored row: hex SHA-256 of tag, then the canonical JSON of its table and columns that are not NULL.

    Leaving NULLs out keeps old digests true when a later release adds a column. Raises `LeafInvalid` for a value
    that is neither text nor a whole number.
    """
    present = {name: value for name, value in columns.items() if value is not None}
    for name, value in present.items():
        if type(value) not in _STORED:
            raise LeafInvalid(f"{table}.{name} is a {type(value).__name__}, which cannot stand in the ledger")
    return sha256(_TAG + encode({"table": table, "row": present})).hexdigest()
