"""Refusals: each is an entry that says code, class and sentence, and is signed before the error reaches anybody."""

from __future__ import annotations

import pytest

from appliance.errors import ApplianceError, BudgetExceeded, PolicyDenied
from appliance.events.event import Refusal
from appliance.events.model import ModelRefused
from appliance.events.run import RunRefused
from appliance.flows.desk import LONGEST, error_facts
from appliance.ledger.leaf import Actor
from appliance.ledger.ledger import Ledger
from tests.builders import desk_at


@pytest.mark.parametrize("event", Refusal.__subclasses__())
def test_a_refusal_is_recorded_and_signed_before_it_is_said(ledger: Ledger, actor: Actor, event: type[Refusal]) -> None:
    refusal = PolicyDenied("the sentence", hint="a hint", where="/private/place")
    with pytest.raises(PolicyDenied) as said, desk_at(ledger, actor).refusals(event, PolicyDenied):
        raise refusal
    assert said.value is refusal
    (entry,) = ledger.entries(event)
    assert entry.leaf["facts"] == {"code": 4, "error": "PolicyDenied", "reason": "the sentence"}
    head = ledger.head()
    assert head is not None
    assert head.size == entry.index + 1


def test_other_errors_pass_without_an_entry(ledger: Ledger, actor: Actor) -> None:
    with pytest.raises(BudgetExceeded), desk_at(ledger, actor).refusals(RunRefused, PolicyDenied):
        raise BudgetExceeded("no")
    assert not list(ledger.entries(RunRefused))


def test_a_message_that_quotes_a_foreign_file_stands_in_a_leaf(ledger: Ledger, actor: Actor) -> None:
    long = ApplianceError(f"tensor \udcff\x1b[2J\t\u202e{'x' * 100_000}")
    assert len(error_facts(long)["reason"]) <= LONGEST + 5
    with pytest.raises(ApplianceError), desk_at(ledger, actor).refusals(ModelRefused, ApplianceError):
        raise long
    assert len(list(ledger.entries(ModelRefused))) == 1
