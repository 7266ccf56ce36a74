"""The self-test sees every fault that is put into it, and those that it cannot see are listed with the reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.audit.selftest import parts
from appliance.jobs.selftest import Check
from appliance.train.tap import ReleaseTap
from tests.unit.audit.mutants.every import MUTANTS, Mutant
from tests.unit.audit.rig_audit import tap

LEAST = {
    "noise": 20,
    "repeats": 10,
    "clip": 20,
    "units": 8,
    "sampling": 15,
    "loops": 15,
    "told": 6,
    "resume": 8,
    "ranks": 10,
    "accounts": 8,
}
BEFORE = {"drawn": ("loop", "invariance", "resume", "ranks"), "component": ("replay", "noise", "sampler")}
"""Parts that judge what others have seen."""

SEEN = [fault for fault in MUTANTS if not fault.unseen]
UNSEEN = [fault for fault in MUTANTS if fault.unseen]


@pytest.fixture
def made(tiny_model_dir: Path) -> Callable[[Mutant], ReleaseTap]:
    """Make a mechanism for the plan of a mutant: a new one, since a fault may leave something behind in its own."""
    return lambda fault: tap(tiny_model_dir, fault.plan)


def judge(fault: Mutant, made: ReleaseTap) -> list[Check]:
    """Run the part of the self-test that has to see the fault."""
    found = dict(parts(made, made._plan))
    for name in BEFORE.get(fault.part, ()):
        found[name]()
    return found[fault.part]()


@pytest.mark.parametrize("fault", SEEN, ids=lambda fault: fault.name)
def test_a_fault_is_seen(fault: Mutant, made: Callable[[Mutant], ReleaseTap], monkeypatch: pytest.MonkeyPatch) -> None:
    mechanism = made(fault)
    fault.put_in(monkeypatch, mechanism)
    assert fault.seen_by in [check.name for check in judge(fault, mechanism) if not check.passed]


@pytest.mark.parametrize("fault", UNSEEN, ids=lambda fault: fault.name)
def test_what_cannot_be_seen_is_said(
    fault: Mutant, made: Callable[[Mutant], ReleaseTap], monkeypatch: pytest.MonkeyPatch
) -> None:
    mechanism = made(fault)
    fault.put_in(monkeypatch, mechanism)
    assert [check for check in judge(fault, mechanism) if not check.passed] == []
    page = Path(__file__).parents[3] / "docs" / "selftest.md"
    assert fault.unseen in " ".join(page.read_text().split())


def test_there_are_faults_of_every_kind() -> None:
    kinds = Counter(fault.put_in.__module__.rpartition(".")[2] for fault in SEEN)
    assert {kind: kinds[kind] >= least for kind, least in LEAST.items()} == dict.fromkeys(LEAST, True)
    assert len({fault.name for fault in MUTANTS}) == len(MUTANTS) >= 60
