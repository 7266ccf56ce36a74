"""Writes the test vector of tickets. Run it once per format version: vectors of a release are never changed.

    python tests/vectors/ticket/generate.py DIRECTORY

Sealing draws a fresh key pair each time, so that another run writes another ticket, as good as this one.
"""

from __future__ import annotations

import sys
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from appliance.jobs.job import EngineOptions, IsolationSpec, SealedObject
from appliance.jobs.lora import LoraSpec
from appliance.jobs.plan import PrivacyPlan, UnitOfPrivacy
from appliance.jobs.ticket import Rendezvous, Ticket
from appliance.jobs.train import TrainJob, TrainSpec
from appliance.store.nodes import PRIVATE, NodeKey, seal
from appliance.values import to_json

PRIVATE_KEY, DATA_KEY = bytes(range(64, 96)), bytes(range(32))


def job() -> TrainJob:
    plan = PrivacyPlan(
        unit=UnitOfPrivacy(), declared_units=600, expected_batch_size=60, steps=3, spare_steps=1, max_grad_norm=1.0,
        clipping="normalised", noise_multiplier=1.25, epsilon=2.0, delta=1.6e-05, sampler_delta=0.0,
    )  # fmt: skip
    return TrainJob(
        schema="appliance.job/1", run_id="run_0123456789ab", plan=plan, lora=LoraSpec(),
        train=TrainSpec(lr=0.001, max_tokens=64), engine=EngineOptions(), isolation=IsolationSpec(), model_dir="",
        model_sha256="11" * 32, agent_socket="",
        dataset=SealedObject(
            dataset_id="ds_0123456789ab", path="", blake3="22" * 32, wrapped_key="", key_epoch=1
        ),
    )  # fmt: skip


def main(directory: Path) -> None:
    node = NodeKey(X25519PrivateKey.from_private_bytes(PRIVATE_KEY).public_key().public_bytes_raw())
    meets = Rendezvous(host="10.9.0.1", port=29400, nonce="33" * 16, first=1, size=2, timeout_s=1800.0)
    bare = Ticket(
        schema="appliance.ticket/1", node=node.fingerprint, rendezvous=meets, ranks=1, job=job(), sealed=""
    )  # fmt: skip
    ticket = bare.model_copy(update={"sealed": seal(DATA_KEY, node, bare.context())})
    (directory / "ticket.json").write_bytes(to_json(ticket))
    (directory / PRIVATE).write_text(f"appliance-node-private-key/1 {PRIVATE_KEY.hex()}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
