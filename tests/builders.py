"""Ledgers, homes and rows as tests make them: each kind is built here, and what a test cares about it names.

A row is valid and says nothing particular. `dataset_row(name="letters")` is one with that name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from appliance.flows.desk import Desk
from appliance.flows.home import Home, HomeConfig
from appliance.ledger.config import LedgerConfig
from appliance.ledger.leaf import Actor
from appliance.ledger.ledger import Ledger
from appliance.ledger.rows import DatasetRow, ModelRow, PolicyRow, RunRow

ORIGIN = "hospital.example/appliance"
_BODY_KEY = bytes([9] + [0] * 31)  # a point of X25519; nothing that is sealed to it is opened


def ledger_config(directory: Path, **changes: Any) -> LedgerConfig:
    """A ledger in one directory, in SQLite unless its URLs are given; nothing is made yet."""
    places = {"signing_dir": directory / "signing", "anchor": directory / "anchor"}
    values = {"url": f"sqlite:///{directory / 'ledger.db'}", "origin": ORIGIN, "body_public_key": _BODY_KEY, **places}
    return LedgerConfig(**(values | changes))


def bare_home(directory: Path) -> Home:
    """A home at a directory, without anything in it."""
    return Home(directory, HomeConfig(schema="appliance.home/1", origin="x"))


def desk_at(ledger: Ledger, actor: Actor, directory: Path = Path("/nowhere")) -> Desk:
    """A desk at an open ledger, in a home that has nothing but a directory."""
    return Desk(bare_home(directory), ledger, actor)


def dataset_row(**changes: Any) -> DatasetRow:
    values: dict[str, Any] = {
        "id": "ds-1", "name": "reviews", "purpose": "training", "class_": "health", "unit_kind": "record",
        "max_records": 1, "declared_units": 1000, "format": "jsonl", "state": "active", "object_blake3": "ab" * 32,
        "object_bytes": 1000, "chunks": 1, "wrapped_key": "AAAA", "key_epoch": 1, "fingerprints_blake3": "cd" * 32,
        "source": "local files",
    }  # fmt: skip
    return DatasetRow(**(values | changes))


def model_row(**changes: Any) -> ModelRow:
    values: dict[str, Any] = {
        "id": "m-1", "sha256": "22" * 32, "source_format": "gguf", "source_sha256": "33" * 32, "architecture": "llama",
        "parameters": 135_000_000, "licence": "apache-2.0", "has_chat_template": True, "files": "[]", "shapes": "{}",
        "state": "active",
    }  # fmt: skip
    return ModelRow(**(values | changes))


def policy_row(**changes: Any) -> PolicyRow:
    values = {"sha256": "11" * 32, "name": "demo", "text": "schema: 1\n", "state": "active"}
    return PolicyRow(**(values | changes))


def run_row(**changes: Any) -> RunRow:
    values: dict[str, Any] = {
        "id": "run-1", "name": "run", "dataset_id": "ds-1", "model_id": "m-1", "state": "reserved",
        "spec_sha256": "44" * 32, "policy_sha256": "55" * 32, "plan": "{}", "reserved_attempts": 10,
        "epsilon_reserved": "8", "delta": "1e-05",
    }  # fmt: skip
    return RunRow(**(values | changes))
