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


class PairedDifference(Facts):
    """How one variant differs from another on the same items, with its 95 % interval and two-sided p."""

    before: Text
    after: Text
    change: Number
    low: Number
    high: Number
    p: Text
    test: Text
    verdict: Text


class BenchmarkMeasured(Event):
    """A run's model was measured on a benchmark that the operator calls public; it costs no privacy if it is.

    `detectable` is the smallest difference that was to be found four times in five, stated before the measurement:
    of shares, or in standard deviations of the differences. `scores_sha256` is of the file with every item's score.
    """

    type: ClassVar[str] = "benchmark.measured"
    about: ClassVar[str] = "run_id"

    benchmark_id: Id
    run_id: Id
    benchmark_sha256: Digest
    items: Whole
    metric: Text
    detectable: Number
    means: dict[str, Number]
    differences: list[PairedDifference]
    adapter_sha256: Digest
    released_sha256: Digest = optional()
    scores_sha256: Digest
    isolation: dict[str, str]
    libraries: dict[str, str]
