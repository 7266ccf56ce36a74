"""A small ledger with one row of each table, made anew for each test."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from appliance.ledger.config import LedgerConfig
from appliance.ledger.leaf import Actor
from appliance.ledger.ledger import Ledger
from appliance.ledger.rows import DatasetRow, PolicyRow
from tests.databases import KINDS, Behind, SQLiteFile
from tests.events import facts_of

BODY_KEY = X25519PrivateKey.from_private_bytes(bytes(range(32)))


class Clock:
    """A clock that a test sets; every reading advances it by a millisecond."""

    def __init__(self) -> None:
        self.now = datetime(2026, 3, 1, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(milliseconds=1)
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def body_key() -> bytes:
    return BODY_KEY.private_bytes_raw()


@pytest.fixture
def actor() -> Actor:
    return Actor("p-7f3a", "Ann Example")


@pytest.fixture(params=KINDS)
def behind(request: pytest.FixtureRequest, tmp_path: Path) -> Behind:
    """Every test of a ledger runs on both databases."""
    if request.param == "postgres":
        database: Behind = request.getfixturevalue("postgres_database")
        return database
    return SQLiteFile(tmp_path / "ledger.db")


@pytest.fixture
def config(tmp_path: Path, behind: Behind) -> LedgerConfig:
    return LedgerConfig(
        **behind.urls,
        origin="hospital.example/appliance",
        signing_dir=tmp_path / "signing",
        anchor=tmp_path / "anchor",
        body_public_key=BODY_KEY.public_key().public_bytes_raw(),
    )


@pytest.fixture
def ledger(config: LedgerConfig, clock: Clock) -> Iterator[Ledger]:
    with Ledger.create(config, clock=clock) as created:
        yield created


@pytest.fixture
def dataset() -> DatasetRow:
    return DatasetRow(
        id="ds-1",
        name="reviews",
        purpose="training",
        class_="health",
        unit_kind="record",
        max_records=1,
        declared_units=1000,
        format="jsonl",
        state="active",
        object_blake3="ab" * 32,
        object_bytes=1000,
        chunks=1,
        wrapped_key="AAAA",
        key_epoch=1,
        fingerprints_blake3="cd" * 32,
        source="local files",
    )


@pytest.fixture
def data_facts() -> dict[str, Any]:
    """Facts of the right names; what they say is checked by whoever states them."""
    return facts_of("data.sealed", dataset_id="ds-1")


@pytest.fixture
def policy() -> PolicyRow:
    return PolicyRow(sha256="11" * 32, name="demo", text="schema: 1\n", state="active")
