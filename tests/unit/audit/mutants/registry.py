"""Faults put into the production classes, one at a time. Each makes the accounted epsilon false."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from appliance.jobs.plan import Phase, PrivacyPlan, UnitKind, UnitOfPrivacy
from appliance.train.tap import ReleaseTap
from tests.unit.audit.rig_audit import claimed

_INTEGERS = ("lattice", "residues", "chains", "repeats", "draws", "reach", "entropy")
_INVARIANCE = ("invariance", "forced", "empty")

RECORDS: dict[str, Any] = {}
SUBJECTS: dict[str, Any] = {"unit": UnitOfPrivacy(kind=UnitKind.SUBJECT, key="patient", max_records=16)}
NORMALISED: dict[str, Any] = {"clipping": "normalised"}
PHASES: dict[str, Any] = {
    "phases": (
        Phase(name="first", steps=40, declared_units=200, expected_batch_size=20),
        Phase(name="second", steps=60, declared_units=2000, expected_batch_size=20),
    )
}


class Patch(Protocol):
    """pytest's monkeypatch, or what stands for it."""

    def setattr(self, target: Any, name: str, value: Any) -> None: ...


PutIn = Callable[[Patch, ReleaseTap], None]


@dataclass(frozen=True)
class Mutant:
    """A fault, the kind of plan that it is tried with, and the check that has to see it; others may see it too.

    Attributes:
      unseen: why nothing in the output can show it; empty for a fault that has to be seen.
    """

    name: str
    seen_by: str
    put_in: PutIn
    changes: dict[str, Any] = field(default_factory=dict)
    unseen: str = ""

    @property
    def plan(self) -> PrivacyPlan:
        return claimed(**self.changes)

    @property
    def part(self) -> str:
        """The part of the self-test that holds the check."""
        room, _, check = self.seen_by.partition(".")
        if room == "noise" and check in _INTEGERS:
            return "integers"
        return "invariance" if room == "loop" and check in _INVARIANCE else room


MUTANTS: list[Mutant] = []


def mutant(seen_by: str, changes: dict[str, Any] = RECORDS) -> Callable[[PutIn], PutIn]:
    """Register a fault that has to be seen."""

    def register(put_in: PutIn) -> PutIn:
        MUTANTS.append(Mutant(put_in.__name__, seen_by, put_in, changes))
        return put_in

    return register


def unseen(part: str, why: str) -> Callable[[PutIn], PutIn]:
    """Register a fault that cannot be seen, with the part of the self-test that comes nearest."""

    def register(put_in: PutIn) -> PutIn:
        MUTANTS.append(Mutant(put_in.__name__, part, put_in, unseen=why))
        return put_in

    return register
