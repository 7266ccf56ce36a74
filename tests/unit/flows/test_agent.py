"""The gatekeeper of dataset keys, against a real log: what it accepts, once, and what it refuses."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import KeyUnavailable
from appliance.events.catalog import event
from appliance.keyagent.gatekeeper import FRESH_S, Gatekeeper
from appliance.keyagent.line import Line
from appliance.ledger.config import LedgerConfig
from appliance.ledger.leaf import Actor
from appliance.ledger.ledger import Ledger
from appliance.ledger.note import Checkpoint
from appliance.ledger.proof import evidence as evidence_for
from appliance.ledger.proving import Prover
from appliance.store.agent import ReleaseRequest
from tests.builders import ledger_config
from tests.databases import Behind
from tests.unit.ledger.conftest import Clock

DATASET = "ds_0123456789ab"
PLACES = "ab" * 32


def request(evidence: bytes, dataset_id: str = DATASET, pid: int = 1, node: str = "") -> ReleaseRequest:
    return ReleaseRequest(
        evidence=evidence, dataset_id=dataset_id, epoch=1, wrapped="AAAA", peer_pid=pid, peer_uid=0, node=node
    )


def gatekeeper_of(ledger: Ledger, since: int, clock: Callable[[], float], followed: bool = True) -> Gatekeeper:
    """A gatekeeper of the ledger as it is now."""
    head = ledger.sign()
    newest = Checkpoint(ledger.verifier_keys[0].split("+")[0], head.size, head.root)
    line = Line(ledger.verifier_keys, PLACES, ledger._anchor.path, newest)
    made = Gatekeeper(line, since=since, clock=clock)
    if followed:
        follow(made, ledger)
    return made


def follow(gatekeeper: Gatekeeper, ledger: Ledger) -> None:
    """Have the gatekeeper follow the log to its end, as whoever wants a key does first."""
    known = gatekeeper.line.follow(PLACES, "")
    gatekeeper.line.follow(PLACES, ledger.prove_consistency(known, ledger.anchored()))


@pytest.fixture
def append(ledger: Ledger, actor: Actor) -> Callable[..., int]:
    """Appends and signs a run's leaf; returns its index."""

    def run_leaf(
        kind: str = "run.started",
        dataset_id: str = DATASET,
        nonce: str = "",
        ranks: int = 0,
        nodes: tuple[str, ...] = (),
    ) -> int:
        facts: dict[str, Any] = {"run_id": "run_1", "dataset_id": dataset_id, "attempts_left": 5}
        facts |= {"ranks": ranks} if ranks else {}
        facts |= {"nnodes": 1 + len(nodes), "nodes": list(nodes)} if nodes else {}
        if kind in ("run.started", "run.resumed"):
            facts["nonce"] = nonce or secrets.token_hex(16)
        with ledger.transaction(actor) as tx:
            index = tx.append(event(kind, facts))
        ledger.sign()
        return index

    return run_leaf


@pytest.fixture
def gatekeeper(ledger: Ledger, clock: Clock) -> Gatekeeper:
    """A gatekeeper that has just started; its clock is the ledger's."""
    newest = next(ledger.entries(limit=1, newest_first=True)).index
    return gatekeeper_of(ledger, newest + 1, lambda: clock().timestamp(), followed=False)


@pytest.fixture
def evidence(ledger: Ledger, append: Callable[..., int], gatekeeper: Gatekeeper) -> Callable[..., bytes]:
    """Evidence of a new leaf, to whose tree head the gatekeeper was led."""

    def make(**leaf: Any) -> bytes:
        index = append(**leaf)
        follow(gatekeeper, ledger)
        return evidence_for(ledger.prove(index), ledger.leaf(index))

    return make


@pytest.mark.parametrize("kind", ["run.started", "run.resumed"])
def test_fresh_evidence_opens_its_dataset_once(
    gatekeeper: Gatekeeper, evidence: Callable[..., bytes], kind: str
) -> None:
    shown = evidence(kind=kind)
    gatekeeper.check(request(shown))
    with pytest.raises(KeyUnavailable, match="used"):
        gatekeeper.check(request(shown))
    gatekeeper.check(request(evidence(kind=kind)))


def test_evidence_of_several_ranks_opens_once_for_each_process(
    gatekeeper: Gatekeeper, evidence: Callable[..., bytes]
) -> None:
    shown = evidence(ranks=3)
    gatekeeper.check(request(shown, pid=11))
    with pytest.raises(KeyUnavailable, match="used"):
        gatekeeper.check(request(shown, pid=11))
    gatekeeper.check(request(shown, pid=12))
    gatekeeper.check(request(shown, pid=13))
    with pytest.raises(KeyUnavailable, match="used"):
        gatekeeper.check(request(shown, pid=14))


def test_a_key_is_sealed_once_to_each_node_that_the_leaf_names(
    gatekeeper: Gatekeeper, evidence: Callable[..., bytes]
) -> None:
    shown = evidence(ranks=6, nodes=("aa" * 32, "bb" * 32))
    with pytest.raises(KeyUnavailable, match="does not name this node"):
        gatekeeper.check(request(shown, node="cc" * 32))
    for node in ("aa" * 32, "bb" * 32):
        gatekeeper.check(request(shown, node=node))
        with pytest.raises(KeyUnavailable, match="used"):
            gatekeeper.check(request(shown, pid=99, node=node))
    for pid in (11, 12):  # two of six ranks are on this machine, whatever was sealed
        gatekeeper.check(request(shown, pid=pid))
    with pytest.raises(KeyUnavailable, match="used"):
        gatekeeper.check(request(shown, pid=13))


def test_a_leaf_that_names_no_node_seals_no_key(gatekeeper: Gatekeeper, evidence: Callable[..., bytes]) -> None:
    shown = evidence(ranks=2)
    with pytest.raises(KeyUnavailable, match="does not name this node"):
        gatekeeper.check(request(shown, node="aa" * 32))
    gatekeeper.check(request(shown))


def test_old_evidence_seals_no_key(ledger: Ledger, append: Callable[..., int]) -> None:
    index = append(ranks=2, nodes=("aa" * 32,))
    shown = request(evidence_for(ledger.prove(index), ledger.leaf(index)), node="aa" * 32)
    made = datetime.fromisoformat(ledger.entry(index).leaf["time"]).timestamp()
    for since, later in ((0, FRESH_S + 0.01), (index + 1, 0.0)):
        with pytest.raises(KeyUnavailable, match="not fresh"):
            gatekeeper_of(ledger, since, lambda later=later: made + later).check(shown)


def test_evidence_that_says_nothing_of_ranks_opens_for_one_process(
    gatekeeper: Gatekeeper, evidence: Callable[..., bytes]
) -> None:
    for shown in (evidence(), evidence(ranks=1)):
        gatekeeper.check(request(shown, pid=11))
        with pytest.raises(KeyUnavailable, match="used"):
            gatekeeper.check(request(shown, pid=12))


def test_a_proof_against_a_later_head_of_a_used_leaf_opens_nothing(
    gatekeeper: Gatekeeper, ledger: Ledger, append: Callable[..., int]
) -> None:
    index = append()
    follow(gatekeeper, ledger)
    gatekeeper.check(request(evidence_for(ledger.prove(index), ledger.leaf(index))))
    append()
    follow(gatekeeper, ledger)
    with pytest.raises(KeyUnavailable, match="used"):
        gatekeeper.check(request(evidence_for(ledger.prove(index), ledger.leaf(index))))


def test_a_nonce_opens_once_whatever_leaf_it_is_in(gatekeeper: Gatekeeper, evidence: Callable[..., bytes]) -> None:
    gatekeeper.check(request(evidence(nonce="ab" * 16)))
    with pytest.raises(KeyUnavailable, match="used"):
        gatekeeper.check(request(evidence(nonce="ab" * 16)))


def test_evidence_of_another_dataset_opens_nothing(gatekeeper: Gatekeeper, evidence: Callable[..., bytes]) -> None:
    shown = evidence(dataset_id="ds_ffffffffffff")
    with pytest.raises(KeyUnavailable, match="not of a use of this key"):
        gatekeeper.check(request(shown))
    gatekeeper.check(request(shown, "ds_ffffffffffff"))  # a refusal uses nothing up


def test_another_kind_of_event_opens_nothing(
    gatekeeper: Gatekeeper, ledger: Ledger, actor: Actor, append: Callable[..., int]
) -> None:
    with ledger.transaction(actor) as tx:
        facts = {"run_id": "run_1", "attempts": 1, "journal_sha256": "00" * 32}
        index = tx.append(event("run.checkpointed", facts))
    ledger.sign()
    follow(gatekeeper, ledger)
    with pytest.raises(KeyUnavailable, match="not of a use of this key"):
        gatekeeper.check(request(evidence_for(ledger.prove(index), ledger.leaf(index))))


def test_evidence_older_than_the_agent_opens_nothing(ledger: Ledger, clock: Clock, append: Callable[..., int]) -> None:
    index = append()
    shown = request(evidence_for(ledger.prove(index), ledger.leaf(index)))
    started_after = gatekeeper_of(ledger, index + 1, lambda: clock().timestamp())
    with pytest.raises(KeyUnavailable, match="not fresh"):
        started_after.check(shown)
    gatekeeper_of(ledger, index, lambda: clock().timestamp()).check(shown)


def test_old_evidence_opens_nothing(ledger: Ledger, append: Callable[..., int]) -> None:
    index = append()
    shown = request(evidence_for(ledger.prove(index), ledger.leaf(index)))
    made = datetime.fromisoformat(ledger.entry(index).leaf["time"]).timestamp()
    late = gatekeeper_of(ledger, 0, lambda: made + FRESH_S + 0.01)
    with pytest.raises(KeyUnavailable, match="not fresh"):
        late.check(shown)
    gatekeeper_of(ledger, 0, lambda: made + FRESH_S - 0.01).check(shown)


def test_no_byte_of_the_leaf_may_differ(gatekeeper: Gatekeeper, evidence: Callable[..., bytes]) -> None:
    shown = json.loads(evidence())
    leaf = base64.b64decode(shown["leaf"])
    for position in range(len(leaf)):
        altered = leaf[:position] + bytes([leaf[position] ^ 1]) + leaf[position + 1 :]
        document = {**shown, "leaf": base64.b64encode(altered).decode()}
        with pytest.raises(KeyUnavailable, match="does not prove"):
            gatekeeper.check(request(json.dumps(document).encode()))
    gatekeeper.check(request(json.dumps(shown).encode()))


def test_a_log_with_other_keys_proves_nothing(
    gatekeeper: Gatekeeper, config: LedgerConfig, clock: Clock, actor: Actor, tmp_path: Path
) -> None:
    (tmp_path / "forged").mkdir()
    mine = ledger_config(tmp_path / "forged", origin=config.origin, body_public_key=config.body_public_key)
    with Ledger.create(mine, clock=clock) as forged:
        for _ in range(3):
            with forged.transaction(actor) as tx:
                facts = {"run_id": "run_1", "dataset_id": DATASET, "attempts_left": 5, "nonce": secrets.token_hex(16)}
                index = tx.append(event("run.started", facts))
        forged.sign()
        shown = evidence_for(forged.prove(index), forged.leaf(index))
        accepting = gatekeeper_of(forged, 0, lambda: clock().timestamp())
        with pytest.raises(KeyUnavailable, match="does not prove"):
            gatekeeper.check(request(shown))
        accepting.check(request(shown))


@pytest.mark.parametrize(
    "shown",
    [b"", b"{}", b"[]", b"null", b"\xff", b'{"leaf":"AAAA"}', b'{"leaf":"!","proof":""}', b'{"leaf":1,"proof":1}',
     b'{"leaf":"AAAA","proof":7}', b'{"leaf":"AAAA","proof":"c2sp.org/tlog-proof@v1\\nindex 0\\n\\n"}'],
)  # fmt: skip
def test_malformed_evidence_is_a_refusal(gatekeeper: Gatekeeper, shown: bytes) -> None:
    with pytest.raises(KeyUnavailable, match="does not prove"):
        gatekeeper.check(request(shown))


def test_evidence_under_a_head_that_was_not_followed_opens_nothing(
    gatekeeper: Gatekeeper, ledger: Ledger, append: Callable[..., int]
) -> None:
    index = append()
    shown = evidence_for(ledger.prove(index), ledger.leaf(index))
    with pytest.raises(KeyUnavailable, match="has not followed"):
        gatekeeper.check(request(shown))
    follow(gatekeeper, ledger)
    gatekeeper.check(request(shown))


def test_evidence_under_an_earlier_head_of_the_line_goes_on_to_open(
    gatekeeper: Gatekeeper, evidence: Callable[..., bytes]
) -> None:
    earlier, later = evidence(), evidence()
    gatekeeper.check(request(later))
    gatekeeper.check(request(earlier))


def test_a_home_whose_places_are_others_is_not_followed(gatekeeper: Gatekeeper) -> None:
    with pytest.raises(KeyUnavailable, match="lies elsewhere"):
        gatekeeper.line.follow("cd" * 32, "")


@pytest.fixture
def branch(
    config: LedgerConfig, behind: Behind, ledger: Ledger, gatekeeper: Gatekeeper, append: Callable[..., int]
) -> Callable[[int], tuple[str, bytes]]:
    """Makes a copy of the ledger that goes on for some entries by itself, and puts the ledger back as it was.

    Returns the proof that its anchor continues what the gatekeeper knows, and the evidence of its last entry.
    """

    def make(entries: int) -> tuple[str, bytes]:
        kept, anchor = behind.copy(), config.anchor.read_bytes()
        indexes = [append() for _ in range(entries)]
        continuation = ledger.prove_consistency(gatekeeper.line.newest.size, ledger.anchored())
        shown = evidence_for(ledger.prove(indexes[-1]), ledger.leaf(indexes[-1]))
        ledger._database.close()
        behind.restore(kept)
        config.anchor.write_bytes(anchor)
        ledger._prover = Prover(ledger._anchor, None, ledger._local[0])
        return continuation, shown

    return make


@pytest.mark.parametrize("entries", [1, 2, 3])
@pytest.mark.parametrize("ours", [0, 1, 2, 3])
def test_a_copy_that_goes_on_beside_the_ledger_is_refused_however_long_each_is(
    gatekeeper: Gatekeeper,
    branch: Callable[[int], tuple[str, bytes]],
    evidence: Callable[..., bytes],
    entries: int,
    ours: int,
) -> None:
    continuation, shown = branch(entries)
    for _ in range(ours):
        gatekeeper.check(request(evidence()))
    known = gatekeeper.line.newest
    with pytest.raises(KeyUnavailable, match="does not continue"):
        gatekeeper.line.follow(PLACES, continuation)
    with pytest.raises(KeyUnavailable, match="has not followed"):
        gatekeeper.check(request(shown))
    assert gatekeeper.line.newest == known
    gatekeeper.check(request(evidence()))


def test_an_older_ledger_with_its_anchor_in_place_of_the_newer_is_refused(
    gatekeeper: Gatekeeper, config: LedgerConfig, ledger: Ledger, evidence: Callable[..., bytes]
) -> None:
    evidence()
    old, size = config.anchor.read_bytes(), ledger.anchored().size
    evidence()
    config.anchor.write_bytes(old)
    for known in (size, gatekeeper.line.newest.size):
        head = ledger.head()
        assert head is not None
        with pytest.raises(KeyUnavailable, match="does not continue"):
            gatekeeper.line.follow(PLACES, ledger.prove_consistency(known, head))
    config.anchor.unlink()
    with pytest.raises(KeyUnavailable, match="does not continue"):
        follow_with_head(gatekeeper, ledger)
    config.anchor.write_bytes(old)


def follow_with_head(gatekeeper: Gatekeeper, ledger: Ledger) -> None:
    """Follow to the database's own newest head, for want of an anchor."""
    head = ledger.head()
    assert head is not None
    gatekeeper.line.follow(PLACES, ledger.prove_consistency(gatekeeper.line.newest.size, head))
