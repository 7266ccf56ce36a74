"""What is said of datasets. None of it is told outside: overlaps are not covered by any guarantee."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from appliance.events.event import Digest, Event, Id, Number, Refusal, Text, Whole, optional
from appliance.events.states import Purpose


class DataSealed(Event):
    """Foreign files were read and sealed as a dataset."""

    type: ClassVar[str] = "data.sealed"
    about: ClassVar[str] = "dataset_id"

    dataset_id: Id
    name: Text
    purpose: Annotated[Purpose, Field(strict=False)]
    class_: Text = Field(validation_alias="class", serialization_alias="class")
    unit_kind: Literal["record", "subject"]
    unit_key: Text | None
    max_records: Whole
    declared_units: Whole
    format: Text
    object_blake3: Digest
    key_epoch: Whole
    overlaps: list[Id]
    fingerprints_blake3: Digest
    source: Text
    kept: list[str] = optional()
    filter_order: Number = optional()
    held_out: Number = optional()
    divided_with: Id = optional()


class DataRetired(Event):
    """No new run or evaluation may use a dataset. Runs on it that were open go on."""

    type: ClassVar[str] = "data.retired"
    about: ClassVar[str] = "dataset_id"

    dataset_id: Id
    open_runs: list[Id]


class DataRefused(Refusal):
    """Data were not ingested."""

    type: ClassVar[str] = "data.refused"
