"""A bundle and a report of the same run say the same of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from appliance.events.catalog import event
from appliance.flows.release.told import citable, run_events
from appliance.ledger.leaf import Actor
from appliance.ledger.ledger import Ledger
from appliance.report.documents import documents
from appliance.report.evidence import SignedHead
from tests.unit.flows.test_report_flow import record
from tests.unit.report.story import HEX, KEY, RUN, WHOLE

RELEASED = next(facts["released_sha256"] for type_, _, facts in WHOLE if type_ == "watermark.embedded")


def detect(ledger: Ledger, actor: Actor, suspect: str, *, found: bool) -> None:
    facts = {
        "run_id": RUN, "key_id": KEY, "suspect_sha256": suspect, "suspect_kind": "adapter", "score": "1.000",
        "p_bound": "1", "detected": found, "keys_tested": 1, "certificate_sha256": HEX[0],
    }  # fmt: skip
    with ledger.transaction(actor) as tx:
        tx.append(event("watermark.detected", facts))


def both(ledger: Ledger) -> list[dict[str, Any]]:
    """`report.json` as it stands in a report and in a bundle."""
    head = ledger.sign()
    signed = SignedHead(origin="o", size=head.size, root=head.root.hex(), note=head.note)
    made = [documents(RUN, events, signed) for events in (citable(ledger), run_events(ledger, RUN))]
    return [json.loads(one["report.json"]) for one in made]


@pytest.mark.parametrize(("found", "tone"), [(True, "good"), (False, "caution")])
def test_a_later_detection_is_told_in_both(ledger: Ledger, actor: Actor, found: bool, tone: str) -> None:
    record(ledger, actor)
    detect(ledger, actor, RELEASED, found=found)
    report, bundle = both(ledger)
    assert report["verdict"] == bundle["verdict"]
    assert report["findings"] == bundle["findings"]
    assert [line["tone"] for line in bundle["findings"] if line["topic"] == "Watermark"] == [tone]


def test_what_others_were_suspected_of_is_told_in_neither(ledger: Ledger, actor: Actor) -> None:
    record(ledger, actor)
    detect(ledger, actor, HEX[15], found=True)
    for document in both(ledger):
        assert HEX[15] not in json.dumps(document)
    assert "watermark.started" not in {event.type for event in run_events(ledger, RUN)}
