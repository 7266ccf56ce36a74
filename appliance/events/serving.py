"""What is said of served models: which, by which engines, to whom, and every answer that was degraded.

Nobody but who reads the ledger is told. No event holds anything of a request or an answer; times and numbers of
degraded answers show when the model was in use.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from appliance.events.event import Digest, Event, Facts, Id, Number, Refusal, Text, Time, Whole, optional


class EngineFacts(Facts):
    """An engine, in the order in which they are asked."""

    name: Text
    kind: Text
    model_sha256: Digest
    vouched_by: Whole


class ServingStarted(Event):
    """A gateway is about to serve the model of a run; `vouched_by` are the entries that say it is of this run."""

    type: ClassVar[str] = "serving.started"
    about: ClassVar[str] = "serving_id"

    serving_id: Id
    run_id: Id
    released_sha256: Digest
    engines: list[EngineFacts]
    listens: Literal["loopback", "socket"]
    clients: list[Text]


class DegradedFacts(Facts):
    """An answer that was not simply the first engine's."""

    id: Text
    at: Time
    reason: Literal["fallback", "retried", "cut", "lost"]
    engine: Text
    failed: list[Text]


class ServingDegraded(Event):
    """Answers of a serving that were degraded; they are counted from 0, and `first` is the first one here."""

    type: ClassVar[str] = "serving.degraded"
    about: ClassVar[str] = "serving_id"

    serving_id: Id
    run_id: Id
    first: Whole
    answers: list[DegradedFacts]


class ServingEnded(Event):
    """A gateway ended. Of one that was killed with its supervisor, numbers are those that it told last.

    Where its spool was damaged, `damaged_line` is the first line, counted from 0, that was not read and recorded, and
    `damaged_sha256` is the spool's digest; it was set aside.
    """

    type: ClassVar[str] = "serving.ended"
    about: ClassVar[str] = "serving_id"

    serving_id: Id
    run_id: Id
    ended: Literal["stopped", "failed", "killed"]
    answered: Whole
    degraded: Whole
    cut: Whole
    lost: Whole
    refused: Whole
    left: Whole
    damaged_line: Whole = optional()
    damaged_sha256: Digest = optional()


class ServingRefused(Refusal):
    """A model was not served."""

    type: ClassVar[str] = "serving.refused"


class ClientAdded(Event):
    """A client may ask served models from now on, with the key of this digest."""

    type: ClassVar[str] = "client.added"

    name: Text
    key_sha256: Digest
    per_minute: Whole


class ClientRevoked(Event):
    """A client may no longer ask."""

    type: ClassVar[str] = "client.revoked"

    name: Text
    key_sha256: Digest


class ServingDrilled(Event):
    """The engines of a model were made to fail under load: what was lost, and how long failover took."""

    type: ClassVar[str] = "serving.drilled"
    about: ClassVar[str] = "run_id"

    run_id: Id
    engines: list[Text]
    faults: list[Text]
    requests: Whole
    answered: Whole
    degraded: Whole
    cut: Whole
    lost: Whole
    unlabelled: Whole
    came_back: bool
    failover_p50_ms: Number
    failover_p99_ms: Number
    detection_max_ms: Number
    first_token_s: Number


class ServingMeasured(Event):
    """A model was measured under requests that came at random times; times are in milliseconds."""

    type: ClassVar[str] = "serving.measured"
    about: ClassVar[str] = "run_id"

    run_id: Id
    engines: list[Text]
    requests: Whole
    failed: Whole
    rate: Number
    first_token_p50: Number
    first_token_p99: Number
    per_token_p50: Number
    whole_p50: Number
    whole_p99: Number
    tokens_per_s: Number
    littles_residual: Number
    harness_overhead: Number
