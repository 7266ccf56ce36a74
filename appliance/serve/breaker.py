"""Whether an engine gets requests. Counts only, no clock and no chance: the same events always decide the same."""

from __future__ import annotations

from dataclasses import dataclass, field

from appliance.jobs.serve import Health

MOST_PROOFS = 12
FORGIVEN = 100
"""Answers in a row after which earlier failures no longer count."""


@dataclass
class Breaker:
    """An engine begins out of service; one proof takes it in, failures in a row take it out.

    Attributes:
      well: whether it gets requests.
      opened: how often it was taken out.
    """

    rules: Health
    well: bool = False
    opened: int = 0
    _needed: int = 1
    _proved: int = field(default=0, repr=False)
    _failed: int = field(default=0, repr=False)
    _in_a_row: int = field(default=0, repr=False)

    def prove(self) -> bool:
        """Note that it answered the question that tests it; says whether that took it back."""
        self._failed = 0
        if self.well:
            return False
        self._proved += 1
        self.well = self._proved >= self._needed
        return self.well

    def succeed(self) -> None:
        """Note that it answered a request. While it is out, only proofs count: this answer began before."""
        if not self.well:
            return
        self._failed, self._in_a_row = 0, self._in_a_row + 1
        if self._in_a_row >= FORGIVEN:
            self._needed = self.rules.proofs

    def fail(self, *, gone: bool = False) -> bool:
        """Note that it failed, or that its process is `gone`; says whether that took it out."""
        self._failed, self._proved, self._in_a_row = self._failed + 1, 0, 0
        if not self.well or not (gone or self._failed >= self.rules.failures):
            return False
        self.well, self.opened = False, self.opened + 1
        self._needed = self.rules.proofs if self.opened == 1 else min(2 * self._needed, MOST_PROOFS)
        return True
