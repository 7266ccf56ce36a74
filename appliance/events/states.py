"""The states of what the ledger knows: a state that is not here can neither be written nor read."""

from __future__ import annotations

from enum import StrEnum


class RunState(StrEnum):
    """How far a training run has come."""

    RESERVED = "reserved"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    ABORTED = "aborted"

    @property
    def open(self) -> bool:
        """Whether it can still go on, so that its whole reservation stands charged."""
        return self in (RunState.RESERVED, RunState.RUNNING)


class EvaluationState(StrEnum):
    """How far an evaluation has come; it is charged in every one of them."""

    RESERVED = "reserved"
    SETTLED = "settled"
    FAILED = "failed"


class PolicyState(StrEnum):
    """Whether a policy is in force."""

    ACTIVE = "active"
    SUPERSEDED = "superseded"


class KeyState(StrEnum):
    """Whether new runs are committed to a watermark key."""

    CURRENT = "current"
    RETIRED = "retired"


class CatalogState(StrEnum):
    """Whether a dataset or a base model may be used. On a retired dataset only runs that were reserved before go on."""

    ACTIVE = "active"
    RETIRED = "retired"


class Purpose(StrEnum):
    """What a dataset may be used for."""

    TRAINING = "training"
    EVALUATION = "evaluation"
