"""Pipes between a supervisor and its worker, whatever goes through them: `jobs.permits`, `jobs.exchange`."""

from __future__ import annotations

from typing import Protocol


class Pipes(Protocol):
    """A supervisor's ends of the pipes to its worker."""

    @property
    def inherited(self) -> tuple[int, int]:
        """The worker's ends."""

    def environment(self) -> dict[str, str]:
        """Say in the worker's environment which of its descriptors they are."""

    def hand_over(self) -> None:
        """Close the worker's ends here, once a worker has them."""

    def wait(self, seconds: float) -> None:
        """Wait for something to do, or so long."""
