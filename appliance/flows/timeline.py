"""What came after what, as the ledger tells it: when spends were reserved, could first show something, and ended.

Which rule composes a dataset's spends depends on what was fixed before its first output, so this is read from the
entries themselves and not from rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from appliance.events.evaluation import EvaluationReserved
from appliance.events.run import RunAborted, RunFailed, RunReserved, RunSettled, RunStarted
from appliance.ledger.reading import LedgerReader
from appliance.privacy.lifetime import NEVER

_ENDS = (RunSettled, RunFailed, RunAborted)
KINDS = (RunReserved, RunStarted, *_ENDS, EvaluationReserved)
"""The entries from which it is read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where the ledger tells of a spend, by index; `NEVER` for what it does not.

    What is not in the ledger at all is taken to have been chosen last and to have come out first.
    """

    reserved_at: float = NEVER
    output_at: float = -1.0
    ended_at: float = NEVER

    def as_arguments(self) -> dict[str, float]:
        """Give them under the names that `Spend` has for them."""
        return {"reserved_at": self.reserved_at, "output_at": self.output_at, "ended_at": self.ended_at}


@dataclass(frozen=True, slots=True)
class Timeline:
    """The places of every run and evaluation."""

    places: Mapping[str, Places]

    @staticmethod
    def read(ledger: LedgerReader) -> Timeline:
        """Read it from the ledger as it is."""
        return Timeline.of_leaves(ledger.leaves(*KINDS))

    @staticmethod
    def of_leaves(leaves: Iterable[Mapping[str, Any]]) -> Timeline:
        """Read it from these entries, in their order.

        A key is released to a run from its start on, to an evaluation from its reservation on.
        """
        reserved: dict[str, int] = {}
        started: dict[str, int] = {}
        ended: dict[str, int] = {}
        for leaf in leaves:
            spend, index = _spend_of(leaf), leaf["index"]
            if leaf["type"] in (RunReserved.type, EvaluationReserved.type):
                reserved.setdefault(spend, index)
            if leaf["type"] in (RunStarted.type, EvaluationReserved.type):
                started.setdefault(spend, index)
            elif leaf["type"] != RunReserved.type:
                ended[spend] = index
        return Timeline(
            {
                spend: Places(reserved_at=index, output_at=started.get(spend, NEVER), ended_at=ended.get(spend, NEVER))
                for spend, index in reserved.items()
            }
        )

    def of(self, spend: str) -> Places:
        """Find the places of a run or an evaluation."""
        return self.places.get(spend, Places())


def _spend_of(leaf: Mapping[str, Any]) -> str:
    facts = leaf["facts"]
    return str(facts.get("evaluation_id", facts["run_id"]))
