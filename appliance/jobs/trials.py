"""Trials of a served model: a drill of its engines, and a measurement under load."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from appliance.jobs.job import Job
from appliance.jobs.serve import ServeJob
from appliance.values import Count, Positive, Value

FAULTS = (
    *("primary kill", "primary stop", "primary stall", "primary garble", "primary half"),
    *("primary another", "primary slow", "primary cut", "fallback kill", "fallback stall"),
)
"""What a drill does: to which engine, and what. Each lasts from one part of its requests to another."""
FAULT_BEGINS, FAULT_ENDS = 1 / 6, 2 / 3


class DrillJob(Job):
    """`job.json` of a drill: faults are injected into the engines of a gateway under load.

    Attributes:
      serve: the gateway; its clients are the drill's own.
      requests: in all; each fault gets the same part of them.
      rate: requests in a second, whether answers come or not.
      answer_tokens: of each answer, at most.
    """

    kind: Literal["serve-drill"] = "serve-drill"
    serve: ServeJob
    requests: Count
    rate: Positive
    answer_tokens: Count = 16

    @property
    def fault_s(self) -> float:
        """Seconds that a fault lasts."""
        return (FAULT_ENDS - FAULT_BEGINS) * self.requests / self.rate / len(FAULTS)


class FaultOutcome(Value):
    """What became of the requests during one fault.

    Attributes:
      degraded: of those that were answered.
      cut: streams that ended with an error after their first token.
      lost: not answered, and nothing was sent before.
      unlabelled: streams that broke off without saying so.
      came_back: whether both engines were well again afterwards.
    """

    fault: str
    requests: int
    answered: int
    degraded: int
    cut: int
    lost: int
    unlabelled: int
    came_back: bool


class DrillResult(Value):
    """What a drill lost, and how long failover took.

    Attributes:
      failovers: answers that needed another engine than the first.
      failover_p50_ms, failover_p99_ms: from the moment when the failure was known, or should have been, until the first
        token came.
      detection_max_ms: the longest time until a failure was known; it should have been within `first_token_s`.
      opened: how often engines were taken out of service.
    """

    schema_: Literal["appliance.drill/1"] = Field(default="appliance.drill/1", alias="schema")
    faults: tuple[FaultOutcome, ...]
    failovers: int
    failover_p50_ms: float
    failover_p99_ms: float
    detection_max_ms: float
    opened: int


class BenchJob(Job):
    """`job.json` of a measurement: requests come at random, whether answers do or not (open loop).

    Attributes:
      rate: requests in a second, on average.
      seconds: in which they come.
      prompt_words: of each prompt, about.
      seed: of the times at which they come; they are the same for the same seed.
    """

    kind: Literal["serve-bench"] = "serve-bench"
    serve: ServeJob
    rate: Positive
    seconds: Positive
    prompt_words: Count = 32
    answer_tokens: Count = 32
    seed: Annotated[int, Field(ge=0)] = 0


class Percentiles(Value):
    """Of times in milliseconds."""

    p50: float
    p95: float
    p99: float


class BenchResult(Value):
    """What was measured. Times count from when a request should have been sent, not from when it was.

    Attributes:
      first_token, per_token, whole: TTFT, TPOT and latency, ms.
      tokens_per_s: of all answers together.
      in_flight: requests that were open on average, as the gateway counts them.
      littles_residual: how much that differs from arrivals times the clients' mean time, as a fraction: Little's law
        says that it does not.
      harness_overhead: how late the median request was sent, as a fraction of the median time.
    """

    schema_: Literal["appliance.serve-bench/1"] = Field(default="appliance.serve-bench/1", alias="schema")
    requests: int
    answered: int
    degraded: int
    failed: int
    first_token: Percentiles
    per_token: Percentiles
    whole: Percentiles
    tokens_per_s: float
    in_flight: float
    littles_residual: float
    harness_overhead: float
