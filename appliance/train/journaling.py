"""What the loop asks of a journal, whoever keeps it."""

from __future__ import annotations

from fractions import Fraction
from typing import Protocol


class JournalState(Protocol):
    """What the loop reads of a journal's state."""

    @property
    def attempts(self) -> int:
        """Attempts made so far, those of earlier processes included."""
        ...

    @property
    def steps(self) -> int:
        """The highest step whose release was journaled."""
        ...


class Journal(Protocol):
    """The write-ahead journal, see `appliance.privacy.journal`."""

    @property
    def state(self) -> JournalState:
        """What has been journaled."""
        ...

    def attempt(self, sample_rate: Fraction, noise_multiplier: float) -> int:
        """Journal that a batch is about to be sampled; durable when it returns."""
        ...

    def record_release(self, step: int, sha256: str) -> None:
        """Journal a release before it is applied."""
        ...

    def record_checkpoint(self, step: int, sha256: str) -> None:
        """Journal a snapshot."""
        ...
