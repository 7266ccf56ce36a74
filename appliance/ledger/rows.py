"""The business rows as frozen values, one field for each column of the tables in `schema`, and their digests.

Numbers that are not whole travel as decimal strings: a float has no canonical text and no place in a ledger.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from hashlib import sha256
from typing import Any, TypeVar

from appliance.ledger.canonical import canonical

_TAG = b"appliance/ledger/row/v1\n"

Value = str | int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetRow:
    """A dataset in the catalog. `overlaps` is a JSON list of dataset ids; `wrapped_key` is base64."""

    id: str
    name: str
    purpose: str
    class_: str
    unit_kind: str
    unit_key: str | None = None
    max_records: int
    declared_units: int
    format: str
    state: str
    object_blake3: str
    object_bytes: int
    chunks: int
    wrapped_key: str
    key_epoch: int
    overlaps: str = "[]"
    fingerprints_blake3: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRow:
    """A base model. `files` and `shapes` are JSON texts."""

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
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """A run and what it reserved and spent. `plan` is a JSON text; epsilons and delta are decimal strings."""

    id: str
    name: str
    dataset_id: str
    model_id: str
    state: str
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
class PolicyRow:
    """A policy by the digest of its text; `state` is "active" or "superseded"."""

    sha256: str
    name: str
    text: str
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRow:
    """An evaluation on a held-out dataset and what it spends of that dataset's budget; numbers are decimal strings."""

    id: str
    run_id: str
    dataset_id: str
    state: str
    policy_sha256: str
    declared_units: int
    noise_multiplier: str
    epsilon: str
    delta: str
    sampler_delta: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WatermarkKeyRow:
    """A watermark key, wrapped under the epoch's key; `state` is "current" or "retired", `wrapped_key` is base64."""

    id: str
    commitment: str
    wrapped_key: str
    key_epoch: int
    state: str


AnyRow = DatasetRow | ModelRow | RunRow | PolicyRow | EvaluationRow | WatermarkKeyRow
Row = TypeVar("Row", bound=AnyRow)


def to_columns(row: AnyRow) -> dict[str, Value]:
    """Column values of a row, as they are stored: a boolean is 0 or 1."""
    values = ((f.name.rstrip("_"), getattr(row, f.name)) for f in fields(row))
    return {name: int(value) if type(value) is bool else value for name, value in values}


def from_columns(kind: type[Row], columns: Mapping[Any, Any]) -> Row:
    """The row that has these column values; other columns are ignored."""
    values: dict[str, Any] = {}
    for f in fields(kind):
        value = columns[f.name.rstrip("_")]
        values[f.name] = bool(value) if f.type == "bool" else value
    return kind(**values)


def row_digest(table: str, columns: Mapping[str, Any]) -> str:
    """Hex SHA-256 of a stored row: tag, then the canonical JSON of its table and its columns that are not NULL.

    Leaving NULLs out keeps old digests true when a later release adds a column. Raises `LeafInvalid` for a value
    that is neither text nor a whole number.
    """
    present = {name: value for name, value in columns.items() if value is not None}
    return sha256(_TAG + canonical({"table": table, "row": present})).hexdigest()
