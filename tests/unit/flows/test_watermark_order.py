"""The order of a watermark: which commitments count, and which evidence opens a watermark key."""

from __future__ import annotations

import secrets
from collections.abc import Callable

import pytest

from appliance.errors import KeyUnavailable, PolicyDenied
from appliance.events.catalog import event
from appliance.flows.watermark.markable import _commitment, algorithm_sha256, current_key, find_embedding, find_trials
from appliance.ledger.leaf import Actor
from appliance.ledger.ledger import Ledger
from appliance.ledger.proof import evidence as evidence_for
from appliance.ledger.rows import WatermarkKeyRow
from appliance.store.agent import ReleaseRequest
from tests.unit.flows.test_agent import gatekeeper_of
from tests.unit.ledger.conftest import Clock

RUN, KEY = "run_1", "wmk_1"
Append = Callable[..., int]


@pytest.fixture
def append(ledger: Ledger, actor: Actor) -> Append:
    """`append(type, ...)`: one signed leaf about RUN; returns its index."""
    facts = {
        "watermark.committed": {
            "key_id": KEY, "commitment": "1" * 64, "model_sha256": "2" * 64, "algorithm_sha256": "3" * 64,
        },
        "run.started": {"dataset_id": "ds_1", "attempts_left": 1, "nonce": secrets.token_hex(16)},
        "watermark.started": {"key_id": KEY, "nonce": secrets.token_hex(16), "purpose": "detect"},
        "watermark.detected": {
            "key_id": KEY, "suspect_sha256": "4" * 64, "suspect_kind": "model", "score": "1.000", "p_bound": "1",
            "detected": False, "keys_tested": 1, "certificate_sha256": "5" * 64,
        },
    }  # fmt: skip

    def add(kind: str, **changes: object) -> int:
        with ledger.transaction(actor) as tx:
            index = tx.append(event(kind, {"run_id": RUN, **facts[kind], **changes}))
        ledger.sign()
        return index

    return add


def test_a_commitment_before_the_first_start_counts(ledger: Ledger, append: Append) -> None:
    append("watermark.committed")
    append("run.started")
    assert _commitment(ledger, RUN).key_id == KEY


@pytest.mark.parametrize(
    "order",
    [
        ("run.started",),
        ("run.started", "watermark.committed"),
        ("watermark.committed", "watermark.committed", "run.started"),
        ("watermark.committed", "run.started", "watermark.committed"),
        ("watermark.committed",),
    ],
)
def test_any_other_order_is_refused(ledger: Ledger, append: Append, order: tuple[str, ...]) -> None:
    for kind in order:
        append(kind)
    with pytest.raises(PolicyDenied, match="committed to no watermark key") as refused:
        _commitment(ledger, RUN)
    assert "appliance watermark keygen" in refused.value.hint


def test_a_commitment_of_another_run_does_not_count(ledger: Ledger, append: Append) -> None:
    append("watermark.committed")
    append("run.started")
    with pytest.raises(PolicyDenied):
        _commitment(ledger, "run_2")
    assert find_embedding(ledger, RUN) is None


def test_every_pair_of_run_and_key_tried_on_a_suspect_is_counted_once(ledger: Ledger, append: Append) -> None:
    assert find_trials(ledger, "4" * 64) == set()
    append("watermark.detected")
    append("watermark.detected")
    append("watermark.detected", key_id="wmk_2")
    append("watermark.detected", suspect_sha256="6" * 64)
    assert find_trials(ledger, "4" * 64) == {(RUN, KEY), (RUN, "wmk_2")}


def test_one_key_is_current(ledger: Ledger, actor: Actor) -> None:
    with ledger.read() as rows:
        assert current_key(rows) is None
    for name in ("wmk_1", "wmk_2"):
        row = WatermarkKeyRow(id=name, commitment="1" * 64, wrapped_key="w", key_epoch=1, state="current")
        with ledger.transaction(actor) as tx:
            for old in tx.watermark_keys.list():
                tx.watermark_keys.update(old, state="retired")
            tx.watermark_keys.add(row)
            facts = {"key_id": name, "commitment": row.commitment, "key_epoch": 1}
            tx.append(event("watermark.keyed", facts))
    with ledger.read() as rows:
        found = current_key(rows)
    assert found is not None
    assert found.id == "wmk_2"


def test_evidence_of_a_use_opens_that_watermark_key_alone_and_once(
    ledger: Ledger, append: Append, clock: Clock
) -> None:
    index = append("watermark.started")
    shown = evidence_for(ledger.prove(index), ledger.leaf(index))
    gatekeeper = gatekeeper_of(ledger, 0, lambda: clock().timestamp())

    def request(name: str) -> ReleaseRequest:
        return ReleaseRequest(evidence=shown, dataset_id=name, epoch=1, wrapped="AAAA", peer_pid=1, peer_uid=0)

    for other in ("wmk_2", "ds_1", RUN):
        with pytest.raises(KeyUnavailable):
            gatekeeper.check(request(other))
    gatekeeper.check(request(KEY))
    with pytest.raises(KeyUnavailable, match="used"):
        gatekeeper.check(request(KEY))


def test_the_control_plane_knows_the_algorithm_without_the_room() -> None:
    from appliance.watermark.certificate import algorithm_sha256 as of_the_room

    assert algorithm_sha256() == of_the_room()
