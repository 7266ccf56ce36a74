"""A ledger of the first revision under this one: read as it is, upgraded when it is written."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from appliance.errors import IntegrityError
from appliance.events.catalog import event
from appliance.ledger import migration, schema
from appliance.ledger.config import LedgerConfig
from appliance.ledger.leaf import Actor
from appliance.ledger.ledger import Ledger
from appliance.ledger.reading import LedgerReader
from appliance.ledger.rows import WatermarkKeyRow
from tests.databases import KINDS, Behind, RawError

ACTOR = Actor("p-1", "Ann Example")


@pytest.fixture
def old(config: LedgerConfig, clock: Any, monkeypatch: pytest.MonkeyPatch) -> LedgerConfig:
    """A ledger at revision 0001 with one entry of its own."""
    with monkeypatch.context() as patch:
        patch.setattr(migration, "upgrade", partial(migration.upgrade, revision="0001"))
        Ledger.create(config, clock=clock).close()
    return config


def test_reading_leaves_an_old_ledger_as_it_is(old: LedgerConfig, behind: Behind) -> None:
    with LedgerReader.open(old) as ledger:
        assert ledger.verify().ok
    with pytest.raises(RawError, match="evaluation"):
        behind.rows("SELECT * FROM evaluation")


def test_writing_upgrades_it_once_and_the_log_says_so(old: LedgerConfig) -> None:
    with Ledger.open(old) as ledger:
        size = ledger.sign().size
        row = WatermarkKeyRow(id="wm_1", commitment="c", wrapped_key="w", key_epoch=1, state="current")
        with ledger.transaction(ACTOR) as tx:
            tx.watermark_keys.add(row)
            tx.append(event("watermark.keyed", {"key_id": "wm_1", "commitment": "c" * 64, "key_epoch": 1}))
    with Ledger.open(old) as ledger:
        upgrades = list(ledger.entries(type="ledger.upgraded"))
        assert [entry.index for entry in upgrades] == [size - 1]
        assert upgrades[0].leaf["facts"]["revision"] == schema.REVISION
        with ledger.read() as rows:
            assert rows.watermark_keys.get("wm_1") == row
        assert ledger.verify().ok


@pytest.mark.parametrize(
    "tampering",
    [
        {"sqlite": "DROP TRIGGER evaluation_update", "postgres": "DROP TRIGGER evaluation_update ON evaluation"},
        dict.fromkeys(KINDS, "DROP TABLE watermark_key"),
        dict.fromkeys(KINDS, "UPDATE alembic_version SET version_num = '0001'"),
        {
            "sqlite": "CREATE TRIGGER extra AFTER INSERT ON evaluation BEGIN SELECT 1; END",
            "postgres": "CREATE TRIGGER extra BEFORE DELETE ON evaluation EXECUTE FUNCTION guard_entry_delete()",
        },
    ],
    ids=["guard", "table", "revision", "added"],
)
def test_the_definitions_in_force_are_those_of_the_upgrade(
    old: LedgerConfig, behind: Behind, tampering: dict[str, str]
) -> None:
    Ledger.open(old).close()
    behind.execute(tampering[behind.kind])
    with pytest.raises(IntegrityError):
        Ledger.open(old).close()
    with LedgerReader.open(old, checked=False) as ledger:
        assert not ledger.verify().ok
