"""What is said of watermarks: keys, commitments before training, marks, and where they were looked for."""

from __future__ import annotations

from typing import ClassVar, Literal

from appliance.events.event import Digest, Event, Id, Nonce, Number, Refusal, Text, Told, Whole

OUTSIDE = Told.BUNDLE | Told.REPORT


class WatermarkKeyed(Event):
    """A watermark key was drawn."""

    type: ClassVar[str] = "watermark.keyed"
    about: ClassVar[str] = "key_id"
    told: ClassVar[Told] = Told.REPORT

    key_id: Id
    commitment: Digest
    key_epoch: Whole


class WatermarkCommitted(Event):
    """A run, not yet trained, was committed to key, base model and algorithm."""

    type: ClassVar[str] = "watermark.committed"
    about: ClassVar[str] = "run_id"
    told: ClassVar[Told] = OUTSIDE

    run_id: Id
    key_id: Id
    commitment: Digest
    model_sha256: Digest
    algorithm_sha256: Digest


class WatermarkStarted(Event):
    """A worker is about to embed or to detect; the key agent releases the watermark key.

    Not told in a bundle: how often a mark was looked for is not the recipient's business.
    """

    type: ClassVar[str] = "watermark.started"
    about: ClassVar[str] = "run_id"
    told: ClassVar[Told] = Told.REPORT
    opens: ClassVar[str] = "key_id"

    run_id: Id
    key_id: Id
    nonce: Nonce
    purpose: Literal["embed", "detect"]


class WatermarkEmbedded(Event):
    """The adapter of a run was marked; the marked one is the only one that may leave."""

    type: ClassVar[str] = "watermark.embedded"
    about: ClassVar[str] = "run_id"
    told: ClassVar[Told] = OUTSIDE

    run_id: Id
    key_id: Id
    commitment: Digest
    model_sha256: Digest
    adapter_sha256: Digest
    released_sha256: Digest
    escrow_sha256: Digest
    algorithm_sha256: Digest
    certificate_sha256: Digest
    strength: Number
    modules: Whole
    score: Number
    score_predicted: dict[str, Number]
    p_bound: Text
    isolation: dict[str, str]
    libraries: dict[str, str]


class WatermarkDetected(Event):
    """The mark of a run was looked for in a suspect. Told where the suspect is what the run released."""

    type: ClassVar[str] = "watermark.detected"
    about: ClassVar[str] = "run_id"
    told: ClassVar[Told] = OUTSIDE

    run_id: Id
    key_id: Id
    suspect_sha256: Digest
    suspect_kind: Literal["adapter", "model"]
    score: Text
    p_bound: Text
    detected: bool
    keys_tested: Whole
    certificate_sha256: Digest


class WatermarkRefused(Refusal):
    """A mark was neither embedded nor looked for."""

    type: ClassVar[str] = "watermark.refused"
