"""What is said of base models."""

from __future__ import annotations

from typing import ClassVar, Literal

from appliance.events.event import Digest, Event, Facts, Id, Number, Refusal, Text, Told, Whole, optional


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


class Compared(Facts):
    """What a conversion changed, on public text: shares in percent, change in percentage points with 95 % bounds."""

    against: Text
    predictions: Whole
    text_sha256: Digest
    accuracy_before: Number
    accuracy_after: Number
    change: Number
    low: Number
    high: Number
    agreement: Number
    loss_before: Number
    loss_after: Number


class ModelConverted(Event):
    """The marked adapter of a run was merged into its base and written out whole, in this format.

    `base_four_bit` says that the base's own weights had been quantised to 4 bits before it was imported: what is
    stated of quantisation comes on top of that. `max_loss` is the gate that it had to pass, in percentage points.
    """

    type: ClassVar[str] = "model.converted"
    about: ClassVar[str] = "run_id"

    run_id: Id
    format: Literal["merged", "int8", "nf4", "gguf-q8_0", "gguf-q4_1", "gguf-q4_0"]
    artefact_sha256: Digest
    model_sha256: Digest
    released_sha256: Digest
    bytes: Whole
    bytes_bfloat16: Whole
    base_four_bit: bool
    watermark_score: Text
    comparison: Compared = optional()
    max_loss: Number = optional()
    isolation: dict[str, str]
    libraries: dict[str, str]


class ConversionRefused(Refusal):
    """A run's model was not converted."""

    type: ClassVar[str] = "conversion.refused"
