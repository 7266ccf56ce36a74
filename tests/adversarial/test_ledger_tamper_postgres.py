"""The same breaking on PostgreSQL, by a superuser who puts every guard aside and back and may recompute every cache."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import orjson
import psycopg
import pytest

from appliance.errors import IntegrityError
from appliance.events.key import KeyLocked
from appliance.ledger import merkle
from appliance.ledger.config import LedgerConfig
from appliance.ledger.ledger import Ledger
from appliance.ledger.reading import LedgerReader
from appliance.ledger.verify import Verification
from tests.adversarial.test_ledger_tamper import ACTOR, DATASET_AT, ENTRIES, SIGNED_EARLY, configuration, fill
from tests.databases import PostgresDatabase, attack
from tests.postgres import OWNER, SUPERUSER, Server


@pytest.fixture(scope="module")
def original(postgres_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A filled ledger: its home, and the database that each test copies."""
    home = tmp_path_factory.mktemp("ledger")
    database = PostgresDatabase(postgres_server, f"tamper_{home.stat().st_ino}")
    postgres_server.create(database.name)
    with Ledger.create(replace(configuration(home), **database.urls)) as ledger:
        fill(ledger)
    yield home, database.name
    database.lose()


@pytest.fixture
def home(original: tuple[Path, str], tmp_path: Path) -> Path:
    return Path(shutil.copytree(original[0], tmp_path / "home"))


@pytest.fixture
def database(postgres_server: Server, original: tuple[Path, str], home: Path) -> Iterator[PostgresDatabase]:
    copied = PostgresDatabase(postgres_server, f"t_{home.stat().st_ino}")
    copied._become(copied.name, original[1])
    yield copied
    copied.lose()


@pytest.fixture
def config(home: Path, database: PostgresDatabase) -> LedgerConfig:
    return replace(configuration(home), **database.urls)


def verify(config: LedgerConfig) -> Verification:
    with LedgerReader.open(config, checked=False) as ledger:
        return ledger.verify()


def test_the_original_verifies(config: LedgerConfig, database: PostgresDatabase) -> None:
    found = verify(config)
    assert found.problems == ()
    assert (found.entries, found.signed_size) == (ENTRIES - 2, ENTRIES - 2)
    attack(database)  # putting the guards aside and back leaves no trace, so the tests below see only their own damage
    assert verify(config).problems == ()


FORGED = "convert_to(replace(convert_from(leaf, 'UTF8'), 'expired', 'EXPIRED'), 'UTF8')"
ZERO = "decode(repeat('00', 32), 'hex')"
SWAP = "UPDATE entry SET idx = CASE idx WHEN {0} THEN {2} WHEN {1} THEN {3} END WHERE idx IN ({0}, {1})"


@pytest.mark.parametrize(
    ("damage", "first_bad"),
    [
        (f"UPDATE entry SET leaf = {FORGED} WHERE idx = 77", 77),
        ("UPDATE entry SET leaf = '' WHERE idx = 5", 5),
        ("UPDATE entry SET type = 'key.created' WHERE idx = 9", 9),
        ("UPDATE entry SET ts = '2000-01-01T00:00:00.000000Z' WHERE idx = 9", 9),
        ("UPDATE entry SET subject = 'r-1' WHERE idx = 2", 2),
        (f"UPDATE entry SET leaf_hash = {ZERO} WHERE idx = 290", 290),
        ("DELETE FROM entry WHERE idx = 100", 100),
        ("DELETE FROM entry WHERE idx = 0", 0),
        ("DELETE FROM entry WHERE idx >= 290", 290),
        (f"{SWAP.format(50, 51, 950, 951)}; {SWAP.format(950, 951, 51, 50)}", 50),
        ("INSERT INTO entry SELECT 298, 'x', leaf, leaf_hash, type, ts, subject FROM entry WHERE idx = 297", 298),
        ("UPDATE body SET sealed = '' WHERE idx = 1", 1),
        ("DELETE FROM body WHERE idx = 1", 1),
        ("UPDATE body SET idx = 7 WHERE idx = 3", 3),
        ("INSERT INTO body VALUES (0, '')", 0),
        (f"UPDATE tile SET hashes = overlay(hashes PLACING {ZERO} FROM 3201)", 100),
        (f"UPDATE tile SET root = {ZERO}", 0),
        ("DELETE FROM tile", 0),
        ("UPDATE head SET size = 299", None),
        ("DELETE FROM head", None),
        ("DELETE FROM tree_head WHERE n = 1", None),
        ("DELETE FROM tree_head WHERE n = (SELECT max(n) FROM tree_head)", None),
        ("UPDATE tree_head SET note = replace(note, 'hospital', 'hospice')", None),
        ("UPDATE dataset SET declared_units = 1000000 WHERE id = 'ds-1'", DATASET_AT),
        ("UPDATE dataset SET event_id = (SELECT event_id FROM entry WHERE idx = 5) WHERE id = 'ds-1'", DATASET_AT),
        ("UPDATE run SET epsilon_charged = '0.1'", 3),
        ("DELETE FROM run", 3),
        ("DELETE FROM policy", 2),
        ("INSERT INTO policy SELECT '22', name, text, state, event_id FROM policy", None),
        ("UPDATE alembic_version SET version_num = '0000'", None),
        ("DROP INDEX entry_by_type", None),
        ("ALTER TABLE run ADD COLUMN extra TEXT", None),
        ("ALTER TABLE run ALTER COLUMN plan TYPE varchar", None),
        ("DROP TABLE run", None),
    ],
)
def test_damage_is_found_and_named(
    config: LedgerConfig, database: PostgresDatabase, damage: str, first_bad: int | None
) -> None:
    aside, back = database.guards()
    back = [sql for sql in back if "DROP TABLE" not in damage or " run " not in sql]
    database.execute(*aside, damage, *back)
    found = verify(config)
    assert not found.ok
    assert found.first_bad == first_bad


def test_a_dropped_or_disabled_guard_is_found_and_stops_writing(
    config: LedgerConfig, database: PostgresDatabase
) -> None:
    guards = database.rows("SELECT tgrelid::regclass::text, tgname FROM pg_trigger WHERE NOT tgisinternal")
    assert len(guards) >= 40
    table, name = "entry", "entry_truncate"
    assert (table, name) in guards
    for state, said in (("DISABLE", "altered"), ("ENABLE REPLICA", "altered"), ("ENABLE", "altered")):
        database.execute(f"ALTER TABLE {table} {state} TRIGGER {name}")
        assert verify(config).problems == (f"trigger {name} was {said} in the database",)
    for table, name in guards:
        database.execute(f"DROP TRIGGER {name} ON {table}")
    found = verify(config).problems
    assert {f"trigger {name} is missing from the database" for _, name in guards} <= set(found)
    with pytest.raises(IntegrityError, match="is missing"):
        Ledger.open(config)


ANY_EVENT = "(SELECT event_id FROM entry WHERE idx = 5)"
NEW_POLICY = "INTO policy (sha256, name, text, state, event_id) VALUES"
UPSERT = "ON CONFLICT (sha256) DO UPDATE SET text = excluded.text, event_id = excluded.event_id"
REFUSED = (
    "INSERT INTO entry SELECT idx, 'x', leaf, leaf_hash, type, ts, subject FROM entry WHERE idx = 3",
    "INSERT INTO entry SELECT 999, 'x', leaf, leaf_hash, type, ts, subject FROM entry WHERE idx = 3",
    "INSERT INTO entry SELECT 298, event_id, leaf, leaf_hash, type, ts, subject FROM entry WHERE idx = 3",
    "UPDATE entry SET leaf = '' WHERE idx = 3",
    "DELETE FROM entry",
    "TRUNCATE entry CASCADE",
    "INSERT INTO body VALUES (1, '')",
    "UPDATE body SET sealed = ''",
    "DELETE FROM body",
    "TRUNCATE body",
    "INSERT INTO tile SELECT * FROM tile",
    "UPDATE tile SET root = ''",
    "DELETE FROM tile",
    "INSERT INTO head VALUES (2, 5, '')",
    "UPDATE head SET size = 5",
    "DELETE FROM head",
    "INSERT INTO tree_head VALUES (0, 999, 'x')",
    "INSERT INTO tree_head VALUES (5, 4, 'x')",
    "UPDATE tree_head SET note = 'x'",
    "DELETE FROM tree_head",
    "UPDATE dataset SET declared_units = 5",
    f"UPDATE dataset SET declared_units = 5, event_id = {ANY_EVENT}",
    "UPDATE dataset SET id = 'x', event_id = 'new' WHERE id = 'ds-1'",
    "UPDATE dataset SET name = 'letters', event_id = 'new' WHERE id = 'ds-1'",
    "DELETE FROM dataset",
    "TRUNCATE policy",
    f"INSERT {NEW_POLICY} ('22', 'lax', 'x', 'active', {ANY_EVENT})",
    f"INSERT {NEW_POLICY} ('22', 'lax', 'x', 'active', NULL)",
    f"INSERT {NEW_POLICY} ('22', 'lax', 'x', 'active', 'new')",
    f"INSERT {NEW_POLICY} ('{'11' * 32}', 'lax', 'x', 'active', {ANY_EVENT}) {UPSERT}",
    f"INSERT {NEW_POLICY} ('{'11' * 32}', 'lax', 'x', 'active', 'new') {UPSERT}",
)


def test_guards_refuse_raw_sql_of_the_owner_too(config: LedgerConfig, database: PostgresDatabase) -> None:
    """The owner, who has every right on the tables, and a superuser as a replication process."""
    for role in (OWNER, SUPERUSER):
        with database.server.connect(database.name, role) as raw:
            statements = list(REFUSED)
            if role == SUPERUSER:
                raw.execute("SET session_replication_role = replica")
                statements = [text for text in REFUSED if "'new')" not in text]  # foreign keys are not enforced there
            for statement in statements:
                with pytest.raises(psycopg.errors.IntegrityError):
                    raw.execute(statement.encode())
    assert verify(config).ok


def recompute(database: PostgresDatabase, change: Callable[[list[bytes]], list[bytes]]) -> None:
    """Rewrite the whole log with every hash, tile and cache right; only the signatures stay as they were."""
    aside, back = database.guards()
    database.execute(*aside)
    builder = merkle.Builder()
    with database.server.connect(database.name) as raw, raw.cursor() as cursor, raw.transaction():
        cursor.execute("SELECT leaf FROM entry ORDER BY idx")
        leaves = change([bytes(row[0]) for row in cursor.fetchall()])
        cursor.execute("DELETE FROM entry")
        cursor.execute("DELETE FROM tile")
        rows = []
        for index, data in enumerate(leaves):
            leaf = orjson.loads(data) | {"index": index}
            data = orjson.dumps(leaf, option=orjson.OPT_SORT_KEYS)
            digest = merkle.leaf_hash(data)
            rows.append((index, leaf["event_id"], data, digest, leaf["type"], leaf["time"], leaf["subject"]))
            for tile in builder.push(digest):
                cursor.execute("INSERT INTO tile VALUES (%s, %s, %s, %s)", tile)
        cursor.executemany("INSERT INTO entry VALUES (%s, %s, %s, %s, %s, %s, %s)", rows)
        cursor.execute("UPDATE head SET size = %s, frontier = %s", (builder.size, b"".join(builder.frontier())))
    database.execute(*back)


def forge(leaves: list[bytes]) -> list[bytes]:
    return [*leaves[:200], leaves[200].replace(b"expired", b"EXPIRED"), *leaves[201:]]


@pytest.mark.parametrize(
    ("change", "first_bad"),
    [
        (lambda leaves: leaves, "none"),  # the control: the recomputation itself is faultless
        (forge, 200 - (200 - SIGNED_EARLY) % 98),  # start of the signed stretch that holds it
        (lambda leaves: leaves[:290], 290),
        (lambda leaves: leaves[:SIGNED_EARLY], SIGNED_EARLY),
        (lambda leaves: [*leaves[:50], leaves[51], leaves[50], *leaves[52:]], 51),
        (lambda leaves: [*leaves[:50], leaves[49].replace(b'"event_id":"0', b'"event_id":"1'), *leaves[50:]], 4),
    ],
    ids=["control", "forged", "cut", "cut to an older signed head", "reordered", "back-dated insertion"],
)
def test_a_recomputed_log_is_found(
    config: LedgerConfig,
    database: PostgresDatabase,
    change: Callable[[list[bytes]], list[bytes]],
    first_bad: int | str,
) -> None:
    recompute(database, change)
    found = verify(config)
    if first_bad == "none":
        assert found.ok
        return
    assert found.first_bad == first_bad
    with pytest.raises(IntegrityError):
        Ledger.open(config)


def test_an_older_copy_of_the_database_is_behind_its_anchor(config: LedgerConfig, database: PostgresDatabase) -> None:
    older = database.copy()
    with Ledger.open(config) as ledger, ledger.transaction(ACTOR) as tx:
        tx.append(KeyLocked())
    database.restore(older)
    found = verify(config)
    assert any("behind its anchor" in problem for problem in found.problems)
    assert found.first_bad == ENTRIES - 2
    with pytest.raises(IntegrityError, match="rolled back"):
        Ledger.open(config)


def test_a_replaced_key_is_found(config: LedgerConfig, tmp_path: Path) -> None:
    with Ledger.create(configuration(tmp_path)) as stranger:
        pinned = stranger.verifier_keys
    with LedgerReader.open(config) as ledger:
        assert not ledger.verify(trusted=pinned).ok
    with pytest.raises(IntegrityError):
        Ledger.open(replace(config, signing_dir=tmp_path / "signing"))
