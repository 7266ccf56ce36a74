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
from tests.builders import dataset_row, ledger_config, policy_row
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
    return ledger_config(tmp_path, **behind.urls, body_public_key=BODY_KEY.public_key().public_bytes_raw())


@pytest.fixture
def ledger(config: LedgerConfig, clock: Clock) -> Iterator[Ledger]:
    with Ledger.create(config, clock=clock) as created:
        yield created


@pytest.fixture
def dataset() -> DatasetRow:
    return dataset_row()


@pytest.fixture
def data_facts() -> dict[str, Any]:
    """Facts of the right names; what they say is checked by whoever states them."""
    return facts_of("data.sealed", dataset_id="ds-1")


@pytest.fixture
def policy() -> PolicyRow:
    return policy_row()
