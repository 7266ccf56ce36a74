"""Options and tickets of a run on several machines, and what a node refuses to join."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from appliance.errors import (
    ApplianceError,
    ArtefactMissing,
    Busy,
    ConfigInvalid,
    IntegrityError,
    IsolationViolated,
    KeyUnavailable,
    UsageError,
)
from appliance.flows import launch, node
from appliance.flows.run.partners import choose_partners
from appliance.jobs.job import EngineOptions, IsolationSpec, SealedObject
from appliance.jobs.lora import LoraSpec
from appliance.jobs.plan import PrivacyPlan, UnitOfPrivacy
from appliance.jobs.rundir import RunDir
from appliance.jobs.ticket import Rendezvous, Ticket
from appliance.jobs.train import TrainJob, TrainSpec
from appliance.store import nodes
from appliance.store.trees import tree_digest
from appliance.values import to_json

NONCE, MEET = "aa" * 16, "10.9.0.1:29400"
KEYS = [nodes.NodeKey(bytes([number]) * 32).line for number in (1, 2)]


@pytest.mark.parametrize(
    ("nnodes", "rendezvous", "keys"),
    [
        (2, "", []),
        (2, MEET, []),
        (2, "", KEYS[:1]),
        (1, MEET, []),
        (1, MEET, KEYS[:1]),
        (3, MEET, KEYS[:1]),
        (3, MEET, [KEYS[0], KEYS[0]]),
        (2, MEET, [KEYS[0][:-1]]),
        (2, MEET, ["no-such-file"]),
        *((2, where, KEYS[:1]) for where in ("10.9.0.1", "10.9.0.1:0", "10.9.0.1:65536", "host:1", ":1", "10.9.0.1:x")),
    ],
)
def test_options_that_do_not_fit_together_are_refused(nnodes: int, rendezvous: str, keys: list[str]) -> None:
    with pytest.raises(UsageError):
        choose_partners(nnodes, rendezvous, keys, 60.0)


def test_options_name_the_machines(tmp_path: Path) -> None:
    assert choose_partners(1, "", [], 60.0) is None
    (tmp_path / "node.pub").write_text(KEYS[1] + "\n")
    chosen = choose_partners(3, "[fd00::1]:29400", [KEYS[0], str(tmp_path / "node.pub")], 60.0)
    assert chosen is not None
    assert [key.line for key in chosen.nodes] == KEYS
    assert (chosen.host, chosen.port, chosen.count) == ("fd00::1", 29400, 3)
    assert chosen.facts() == {"nnodes": 3, "nodes": [key.fingerprint for key in chosen.nodes]}
    placed = [chosen.rendezvous(machine, 2, NONCE) for machine in range(3)]
    assert [(place.first, place.size, place.here) for place in placed] == [(0, 6, "fd00::1"), (2, 6, ""), (4, 6, "")]


# --- what a node refuses ---------------------------------------------------------------------------------------------


def job(model: Path, sealed: Path, network: str) -> TrainJob:
    plan = PrivacyPlan(
        unit=UnitOfPrivacy(), declared_units=600, expected_batch_size=60, steps=3, spare_steps=1, max_grad_norm=1.0,
        clipping="normalised", noise_multiplier=1.0, epsilon=2.0, delta=1e-5, sampler_delta=0.0,
    )  # fmt: skip
    return TrainJob(
        schema="appliance.job/1", run_id="run_0123456789ab", plan=plan, lora=LoraSpec(),
        train=TrainSpec(lr=0.1, max_tokens=64), engine=EngineOptions(),
        isolation=IsolationSpec.model_validate({"network": network}), model_dir="", agent_socket="",
        model_sha256=tree_digest(model)[0],
        dataset=SealedObject(
            dataset_id="ds_1", path="", blake3=blake3(sealed.read_bytes()).hexdigest(), wrapped_key="", key_epoch=1
        ),
    )  # fmt: skip


@pytest.fixture
def carry(tmp_path: Path) -> Callable[..., Path]:
    """`carry(network=...)`: a node with object, model and a ticket that it would join by; the ticket's path."""

    def made(network: str = "preferred") -> Path:
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "config.json").write_text("{}")
        (tmp_path / "object").write_bytes(b"sealed")
        public = node.init(tmp_path / "node")
        meets = Rendezvous(host="127.0.0.1", port=29999, nonce=NONCE, first=1, size=4, timeout_s=1.0)
        bare = Ticket(
            schema="appliance.ticket/1", node=public.fingerprint, rendezvous=meets, ranks=1, sealed="",
            job=job(tmp_path / "model", tmp_path / "object", network),
        )  # fmt: skip
        ticket = bare.model_copy(update={"sealed": nodes.seal(bytes(32), public, bare.context())})
        (tmp_path / "ticket.json").write_bytes(to_json(ticket))
        return tmp_path / "ticket.json"

    return made


def refused(tmp_path: Path, kind: type[ApplianceError], match: str | None = None, root: str = "node") -> ApplianceError:
    with pytest.raises(kind, match=match) as caught:
        node.join(tmp_path / root, tmp_path / "ticket.json", tmp_path / "object", tmp_path / "model", None)
    assert not list(tmp_path.glob("node*/runs/*/job.json"))
    return caught.value


def test_a_ticket_of_another_node_opens_nothing(tmp_path: Path, carry: Callable[..., Path]) -> None:
    carry()
    node.init(tmp_path / "node-2")
    assert refused(tmp_path, KeyUnavailable, "for another node", "node-2").exit_status == 13
    mine = node.show(tmp_path / "node-2").fingerprint
    altered(tmp_path / "ticket.json", lambda ticket: ticket | {"node": mine})
    assert refused(tmp_path, IntegrityError, "altered", "node-2").exit_status == 8
    assert refused(tmp_path, ArtefactMissing, "no node key", "node-3").exit_status == 11


def altered(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


SOFT = {"network": "preferred", "files": "required"}
ALTERATIONS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "rendezvous": lambda t: t | {"rendezvous": t["rendezvous"] | {"host": "127.0.0.9"}},
    "port": lambda t: t | {"rendezvous": t["rendezvous"] | {"port": 80}},
    "rank": lambda t: t | {"rendezvous": t["rendezvous"] | {"first": 2}},
    "nonce": lambda t: t | {"rendezvous": t["rendezvous"] | {"nonce": "ab" * 16}},
    "number of ranks": lambda t: t | {"ranks": 2},
    "what the policy requires": lambda t: t | {"job": t["job"] | {"isolation": SOFT}},
    "noise": lambda t: t | {"job": t["job"] | {"plan": t["job"]["plan"] | {"noise_multiplier": 0.1}}},
    "model": lambda t: t | {"job": t["job"] | {"model_sha256": "00" * 32}},
    "object": lambda t: t | {"job": t["job"] | {"dataset": t["job"]["dataset"] | {"blake3": "00" * 32}}},
    "sealed key": lambda t: t | {"sealed": t["sealed"][:-8] + "AAAAAAA="},
}  # fmt: skip


@pytest.mark.parametrize("what", ALTERATIONS)
def test_an_altered_ticket_does_not_open(tmp_path: Path, carry: Callable[..., Path], what: str) -> None:
    altered(carry(), ALTERATIONS[what])
    refusal = refused(tmp_path, IntegrityError, "the ticket was altered")
    assert (refusal.exit_status, refusal.where) == (8, str(tmp_path / "ticket.json"))


def test_what_is_no_ticket_is_refused(tmp_path: Path, carry: Callable[..., Path]) -> None:
    altered(carry(), lambda ticket: ticket | {"more": 1})
    refused(tmp_path, ConfigInvalid, "not a ticket")
    (tmp_path / "ticket.json").unlink()
    refused(tmp_path, ArtefactMissing, "ticket is not here")
    (tmp_path / "ticket.json").mkdir()
    refused(tmp_path, ArtefactMissing, "ticket cannot be read")


FORGERIES = {
    "a path that leads out": (b'"run_id":"run_0123456789ab"', b'"run_id":"../../victim"'),
    "a path from the root": (b'"run_id":"run_0123456789ab"', b'"run_id":"/victim"'),
    "more ranks than there are": (b'"ranks":1', b'"ranks":4'),
    "the first rank, which is the control node's": (b'"first":1', b'"first":0'),
    "more processes than a machine may run": (b'"size":4', b'"size":100000'),
}


@pytest.mark.parametrize("what", FORGERIES)
def test_who_knows_the_public_key_cannot_forge_a_ticket_that_leaves_its_bounds(
    tmp_path: Path, carry: Callable[..., Path], what: str
) -> None:
    path = carry()
    honest, forged = FORGERIES[what]
    bare = to_json(Ticket.model_validate_json(path.read_bytes()).model_copy(update={"sealed": ""}))
    assert bare.count(honest) == 1
    bare = bare.replace(honest, forged)
    sealed = nodes.seal(bytes(32), node.show(tmp_path / "node"), hashlib.sha256(bare).hexdigest())
    path.write_bytes(bare.replace(b'"sealed":""', f'"sealed":"{sealed}"'.encode()))
    victim = tmp_path / "victim-aaaaaaaa" / "tmp"
    victim.mkdir(parents=True)
    refused(tmp_path, ConfigInvalid, "not a ticket")
    assert list(victim.parent.iterdir()) == [victim]


def test_a_wrong_object_or_model_is_named(tmp_path: Path, carry: Callable[..., Path]) -> None:
    carry()
    (tmp_path / "object").write_bytes(b"another")
    refusal = refused(tmp_path, IntegrityError)
    assert (refusal.exit_status, refusal.where) == (8, str(tmp_path / "object"))
    (tmp_path / "object").write_bytes(b"sealed")
    (tmp_path / "model" / "config.json").write_text("{ }")
    refusal = refused(tmp_path, IntegrityError, "base model")
    assert (refusal.exit_status, refusal.where) == (8, str(tmp_path / "model"))


def test_a_network_that_is_not_wireguard_is_refused(tmp_path: Path, carry: Callable[..., Path]) -> None:
    carry("required")
    assert refused(tmp_path, IsolationViolated, "beside loopback there is|is not WireGuard").exit_status == 7


def test_a_start_that_is_joined_already_is_busy(tmp_path: Path, carry: Callable[..., Path]) -> None:
    carry()
    run_dir = tmp_path / "node" / "runs" / f"run_0123456789ab-{NONCE[:8]}"
    run_dir.mkdir(parents=True)
    with launch.supervising(RunDir(run_dir)):
        refused(tmp_path, Busy)
