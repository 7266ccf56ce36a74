"""A small ledger about one finished run, and sealed directories made from it. No torch, no flows but the sealing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import rfc8785

from appliance.events.catalog import event
from appliance.events.event import Event
from appliance.flows.release.sealing import Contents, Sealed, seal_directory
from appliance.flows.release.told import run_events
from appliance.ledger.config import LedgerConfig
from appliance.ledger.leaf import Actor
from appliance.ledger.ledger import Ledger
from appliance.store.trees import tree_digest
from tests.builders import ORIGIN, desk_at, ledger_config
from tests.events import facts_of

ACTOR = Actor("p-1", "")
START = datetime(2026, 1, 1, tzinfo=UTC)


class Ticks:
    """A clock that moves on a second with every reading."""

    def __init__(self, start: datetime = START) -> None:
        self.now = start

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


def config_of(directory: Path, origin: str = ORIGIN) -> LedgerConfig:
    return ledger_config(directory, origin=origin, body_public_key=bytes(range(32)))


def make_ledger(directory: Path) -> Ledger:
    directory.mkdir(parents=True, exist_ok=True)
    return Ledger.create(config_of(directory), clock=Ticks())


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def make_released(directory: Path) -> str:
    """A tiny adapter directory; its digest."""
    directory.mkdir(parents=True)
    (directory / "adapter_config.json").write_text('{"r": 8}\n')
    (directory / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 2)
    return tree_digest(directory)[0]


def record_run(ledger: Ledger, run_id: str, released: str, **changes: Mapping[str, Any]) -> None:
    """Every event of a run, up to its evaluation. `changes`: facts to replace, by event type with `_` for the dot."""
    certificate = make_certificate(run_id, released)
    policy, model, dataset, evaluation = sha("policy"), sha("model"), "ds_0a", f"evaluation_{run_id[4:]}"
    plan = {
        "unit": "record", "max_records": 1, "neighbouring": "add-or-remove-one", "declared_units": 1000,
        "expected_batch_size": 100, "sample_rate": "1/10", "steps": 20, "attempts": 24, "max_grad_norm": "1.0",
        "clipping": "fixed", "noise_multiplier": "1.1", "epsilon": "8.0", "delta": "0.00001",
        "sampler_delta": "0.000000000001", "accountant": "pld",
    }  # fmt: skip
    mark = {
        "run_id": run_id,
        "key_id": "wmk_1",
        "commitment": sha("key"),
        "model_sha256": model,
        "algorithm_sha256": sha("alg"),
    }
    facts: dict[str, dict[str, Any]] = {
        "policy.activated": {"name": "demo", "sha256": policy},
        "model.imported": {"model_id": "tiny", "sha256": model},
        "run.reserved": {
            "run_id": run_id, "dataset_id": dataset, "model_id": "tiny", "spec_sha256": sha("spec"), "plan": plan,
            "epsilon_before": "0.0", "epsilon_after": "8.0", "cap": "10.0",
        },
        "watermark.committed": mark,
        "audit.selftest": {
            "run_id": run_id, "passed": True,
            "checks": [{"name": "noise", "passed": True, "value": "0.5", "bound": "0.00001", "count": 9}],
        },
        "run.started": {"run_id": run_id, "dataset_id": dataset, "attempts_left": 24},
        "run.settled": {
            "run_id": run_id, "dataset_id": dataset, "attempts": 21, "steps": 20, "epsilon_pld": "7.9902",
            "epsilon_prv": "7.9951", "epsilon_rdp": "8.6", "epsilon_charged": "7.9951", "delta": "0.00001",
            "sampler_delta": "0.000000000001", "noise_multiplier": "1.1", "sample_rate": "1/10",
            "adapter_sha256": sha("unmarked"),
        },
        "watermark.embedded": {
            **mark, "adapter_sha256": sha("unmarked"), "released_sha256": released, "escrow_sha256": sha("escrow"),
            "certificate_sha256": hashlib.sha256(certificate).hexdigest(), "score": "63.100", "p_bound": "2^-128",
            "score_predicted": {"none": "60.000"},
        },
        "evaluation.reserved": {
            "evaluation_id": evaluation, "run_id": run_id, "dataset_id": "ds_0b", "epsilon": "1.0", "delta": "0.00001",
            "epsilon_before": "0.0", "epsilon_after": "1.0", "cap": "10.0",
        },
        "evaluation.settled": {
            "evaluation_id": evaluation, "run_id": run_id, "dataset_id": "ds_0b", "epsilon_charged": "0.9993",
            "delta": "0.00001",
        },
    }  # fmt: skip
    for type_, stated in facts.items():
        entry = event(type_, facts_of(type_) | stated)
        with ledger.transaction(ACTOR, policy_sha256=policy) as tx:
            tx.append(forged(entry, changes.get(type_.replace(".", "_"), {})))


def forged(genuine: Event, changes: Mapping[str, Any]) -> Event:
    """An event that states other facts, also such as the appliance would not write: whoever has the keys can."""

    class Forged(type(genuine)):  # type: ignore[misc]
        def facts(self) -> dict[str, Any]:
            return super().facts() | changes

    return Forged.of(genuine.facts())


def make_certificate(run_id: str, released: str) -> bytes:
    document = {
        "schema": "appliance.watermark/1", "run_id": run_id, "key_id": "wmk_1", "commitment": sha("key"),
        "base": sha("model"), "algorithm": sha("alg"), "escrow": sha("escrow"), "suspect": released,
        "statistic": "63.100", "p_bound": "2^-128", "predicted": {"none": "60.000"},
    }  # fmt: skip
    return bytes(rfc8785.dumps(document)) + b"\n"


def make_documents(ledger: Ledger, run_id: str, released: str) -> tuple[dict[str, bytes], int]:
    """Documents in the form of the report room, and the size of the tree head that they name."""
    head = ledger.sign()
    settled = next(e for e in run_events(ledger, run_id) if e.type == "run.settled")
    value = settled.facts["epsilon_charged"]
    figure = {"name": "epsilon", "entry": settled.index, "fact": "/epsilon_charged", "value": value}
    place = {"tree_size": head.size, "root": head.root.hex()}
    report = {"schema": "appliance.report/1", "run_id": run_id, **place, "figures": [figure]}
    statement = {"schema": "appliance.privacy/1", "run_id": run_id, "values": [figure], "ledger": place}
    at = f'data-entry="{settled.index}" data'
    shown = [
        f'<data class="figure" {at}-fact="/epsilon_charged" value="{value}">{value}</data>',
        f'<data class="leaf" {at}-field="/time" value="{settled.time}">{settled.time}</data>',
        f'<data class="head" data-field="/size" value="{head.size}">{head.size}</data>',
    ]
    html = f"<!DOCTYPE html><html><body><p>{' '.join(shown)}</p></body></html>\n"
    documents = {
        "report.json": rfc8785.dumps(report) + b"\n",
        "privacy_statement.json": rfc8785.dumps(statement) + b"\n",
        "report.html": html.encode(),
        "README.md": b"# A model card\n",
        "watermark_certificate.json": make_certificate(run_id, released),
    }
    return documents, head.size


def export(ledger: Ledger, directory: Path, run_id: str, name: str = "bundle", **more: Any) -> Sealed:
    """A bundle of a recorded run at `directory`/`name`; `more` replaces fields of its contents."""
    source = directory / "released"
    released = tree_digest(source)[0] if source.exists() else make_released(source)
    documents, size = make_documents(ledger, run_id, released)
    contents: dict[str, Any] = {
        "kind": "bundle", "id": f"bundle_{name}", "run_id": run_id, "documents": documents,
        "entries": [event.index for event in run_events(ledger, run_id)],
        "facts": {"recipient": None, "released_sha256": released},
        "copies": {"adapter": (source, released)}, "tree_sizes": [size],
    }  # fmt: skip
    return seal_directory(desk_at(ledger, ACTOR), directory / name, Contents(**contents | more))


def make_bundle(directory: Path, run_id: str = "run_1") -> None:
    """A home with a ledger of one run and a bundle of it: `ledger/`, `released/`, `bundle/`, `keys.txt`."""
    released = make_released(directory / "released")
    with make_ledger(directory / "home") as ledger:
        record_run(ledger, run_id, released)
        export(ledger, directory, run_id)
        (directory / "keys.txt").write_text("".join(f"{key}\n" for key in ledger.verifier_keys))


def rewrite_json(path: Path, **changes: Any) -> bytes:
    data = bytes(rfc8785.dumps(json.loads(path.read_bytes()) | changes)) + b"\n"
    path.write_bytes(data)
    return data
