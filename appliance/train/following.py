"""The journal, the snapshots and the randomness of a run as several ranks see them: the first has them, all follow.

The loop uses them as it uses the real ones, so the ranks decide alike what comes next.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NoReturn

import torch

from appliance.errors import GateFailed
from appliance.train.engines import Several
from appliance.train.journaling import Journal
from appliance.train.snapshot import Snapshots


@dataclass(frozen=True, slots=True)
class Counts:
    """What all ranks know of the journal."""

    attempts: int
    steps: int


class FollowedJournal:
    """The journal of the first rank.

    Args:
      ranks: who follows.
      journal: the journal on the first rank, None elsewhere.
    """

    def __init__(self, ranks: Several, journal: Journal | None) -> None:
        if ranks.main != (journal is not None):
            raise GateFailed("the first rank keeps the journal, and no other")
        self._ranks, self._journal = ranks, journal
        self.state = self._told()

    def attempt(self, sample_rate: Fraction, noise_multiplier: float) -> int:
        """Journal the attempt on the first rank; no rank goes on before it is on the disk."""
        if self._journal is not None:
            self._journal.attempt(sample_rate, noise_multiplier)
        self.state = self._told()
        return self.state.attempts

    def record_release(self, step: int, sha256: str) -> None:
        """Journal a release."""
        if self._journal is not None:
            self._journal.record_release(step, sha256)

    def record_checkpoint(self, step: int, sha256: str) -> None:
        """Journal a snapshot."""
        if self._journal is not None:
            self._journal.record_checkpoint(step, sha256)

    def _told(self) -> Counts:
        state: Any = self._journal.state if self._journal is not None else Counts(0, 0)
        attempts, steps = self._ranks.share(torch.tensor([state.attempts, state.steps])).tolist()
        return Counts(attempts, steps)


class FollowedSnapshots:
    """The snapshots of the first rank: it alone writes, and all ranks get what it reads."""

    def __init__(self, ranks: Several, snapshots: Snapshots | None) -> None:
        self._ranks, self._snapshots = ranks, snapshots

    def save(self, name: str, data: bytes) -> None:
        """Store on the first rank."""
        if self._snapshots is not None:
            self._snapshots.save(name, data)

    def load(self, name: str) -> bytes | None:
        """Load what the first rank has under this name; a collective."""
        return self._ranks.share_bytes(self._snapshots.load(name) if self._snapshots is not None else None)

    def delete(self, name: str) -> None:
        """Remove it on the first rank."""
        if self._snapshots is not None:
            self._snapshots.delete(name)


class NotHere:
    """Sampler and noise of a rank that has neither."""

    def begin(self, _: int) -> None:
        """Begin nothing."""

    def draw(self, *_: int) -> NoReturn:
        """Refuse: a second sample or a second noise vector would belong to no accounted mechanism."""
        raise GateFailed("only the first rank samples and draws noise")
