"""A ledger of the first revision under this one: read as it is, upgraded when it is written."""

from __future__ import annotations

import sqlite3
from functools import partial
from typing import Any

import pytest

from appliance.errors import IntegrityError
from appliance.ledger import migration
from appliance.ledger.leaf import Actor
from appliance.ledger.ledger import Ledger, LedgerConfig
from appliance.ledger.rows import WatermarkKeyRow

ACTOR = Actor("p-1", "Ann Example")


@pytest.fixture
def old(config: LedgerConfig, clock: Any, monkeypatch: pytest.MonkeyPatch) -> LedgerConfig:
    """A ledger at revision 0001 with one entry of its own."""
    with monkeypatch.context() as patch:
        patch.setattr(migration, "upgrade", partial(migration.upgrade, revision="0001"))
        Ledger.create(config, clock=clock).close()
    return config


def tables(config: LedgerConfig) -> set[str]:
    with sqlite3.connect(config.url.removeprefix("sqlite:///")) as connection:
        return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def test_reading_leaves_an_old_ledger_as_it_is(old: LedgerConfig) -> None:
    with Ledger.open(old, writable=False) as ledger:
        assert ledger.verify().ok
    assert "evaluation" not in tables(old)


def test_writing_upgrades_it_once_and_the_log_says_so(old: LedgerConfig) -> None:
    with Ledger.open(old) as ledger:
        size = ledger.sign().size
        row = WatermarkKeyRow(id="wm_1", commitment="c", wrapped_key="w", key_epoch=1, state="current")
        with ledger.transaction(ACTOR) as tx:
            tx.watermark_keys.add(row)
            tx.append("watermark.keyed", {"key_id": "wm_1", "commitment": "c", "key_epoch": 1}, subject="wm_1")
    with Ledger.open(old) as ledger:
        upgrades = list(ledger.entries(type="ledger.upgraded"))
        assert [entry.index for entry in upgrades] == [size - 1]
        assert upgrades[0].leaf["facts"]["revision"] == "0002"
        with ledger.read() as rows:
            assert rows.watermark_keys.get("wm_1") == row
        assert ledger.verify().ok


@pytest.mark.parametrize(
    "tampering",
    [
        "DROP TRIGGER evaluation_update",
        "DROP TABLE watermark_key",
        "UPDATE alembic_version SET version_num = '0001'",
        "CREATE TRIGGER extra AFTER INSERT ON evaluation BEGIN SELECT 1; END",
    ],
)
def test_the_definitions_in_force_are_those_of_the_upgrade(old: LedgerConfig, tampering: str) -> None:
    Ledger.open(old).close()
    with sqlite3.connect(old.url.removeprefix("sqlite:///")) as connection:
        connection.execute(tampering)
    with pytest.raises(IntegrityError):
        Ledger.open(old).close()
    with Ledger.open(old, writable=False, checked=False) as ledger:
        assert not ledger.verify().ok
