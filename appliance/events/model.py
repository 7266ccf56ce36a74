"""What is said of base models."""

from __future__ import annotations

from typing import ClassVar

from appliance.events.event import Digest, Event, Id, Refusal, Text, Told, Whole, optional


class ModelImported(Event):
    """A base model was checked, converted and copied into the home, or looked at again by a later release.

    `trained` has for each precision that was tried an empty text, or why it cannot be trained exactly in that;
    `numbers` are sizes of the architecture under transformers' names; `conversations` says
    which shapes of conversation the chat template carries.
    """

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
    trained: dict[str, str] = optional()
    numbers: dict[str, Whole] = optional()
    conversations: dict[str, bool] = optional()


class ModelRefused(Refusal):
    """A base model was not imported."""

    type: ClassVar[str] = "model.refused"
