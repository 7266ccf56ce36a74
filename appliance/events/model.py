"""What is said of base models."""

from __future__ import annotations

from typing import ClassVar

from appliance.events.event import Digest, Event, Id, Refusal, Text, Told, Whole


class ModelImported(Event):
    """A base model was checked, converted and copied into the home."""

    type: ClassVar[str] = "model.imported"
    about: ClassVar[str] = "model_id"
    told: ClassVar[Told] = Told.BUNDLE | Told.REPORT

    model_id: Id
    sha256: Digest
    source_format: Text
    source_sha256: Digest
    architecture: Text
    parameters: Whole
    licence: Text
    has_chat_template: bool
    isolation: dict[str, str]
    libraries: dict[str, str]


class ModelRefused(Refusal):
    """A base model was not imported."""

    type: ClassVar[str] = "model.refused"
