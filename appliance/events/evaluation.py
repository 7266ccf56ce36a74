"""What is said of evaluations on held-out private data."""

from __future__ import annotations

from typing import ClassVar

from appliance.events.event import Digest, Event, Facts, Id, Nonce, Number, Refusal, Text, Told, Whole, optional

OUTSIDE = Told.BUNDLE | Told.REPORT


class _Evaluation(Event):
    about: ClassVar[str] = "run_id"
    told: ClassVar[Told] = OUTSIDE

    evaluation_id: Id
    run_id: Id
    dataset_id: Id


class EvaluationReserved(_Evaluation):
    """All that an evaluation costs was charged to its dataset; nothing of it is ever given back."""

    type: ClassVar[str] = "evaluation.reserved"

    spec_sha256: Digest
    declared_units: Whole
    clip_nat: Number
    noise_multiplier: Number
    epsilon: Number
    delta: Number
    sampler_delta: Number
    epsilon_before: Number
    epsilon_after: Number
    cap: Number
    lifetime_delta: Number = optional()
    filter_order: Number = optional()
    counted_by: Text = optional()


class EvaluationStarted(_Evaluation):
    """The worker of an evaluation is about to start; the key agent releases the key of its dataset."""

    type: ClassVar[str] = "evaluation.started"
    opens: ClassVar[str] = "dataset_id"

    nonce: Nonce


class Comparison(Facts):
    """Gain of one adapter over the base, in nat per token, with its interval."""

    name: Text
    gain_nat: Number
    low: Number
    high: Number
    noise_std: Number


class EvaluationSettled(_Evaluation):
    """An evaluation released its noised sum."""

    type: ClassVar[str] = "evaluation.settled"
    charges: ClassVar[bool] = True

    epsilon_charged: Number
    delta: Number
    declared_units: Whole
    comparisons: list[Comparison]
    released: list[int]
    public: dict[str, str]
    isolation: dict[str, str]
    libraries: dict[str, str]


class EvaluationFailed(_Evaluation):
    """An evaluation released nothing; it is charged all the same."""

    type: ClassVar[str] = "evaluation.failed"
    charges: ClassVar[bool] = True

    epsilon_charged: Number
    delta: Number
    code: Whole
    reason: Text
    error: Text = optional()


class EvaluationRefused(Refusal):
    """An evaluation was not reserved."""

    type: ClassVar[str] = "evaluation.refused"
