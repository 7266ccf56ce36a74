"""Breaking a ledger on purpose: whatever is done to the database file, verification says so and names the place.

The attacker here writes the database with SQLite of their own, without our guards, and may recompute every cache;
they do not hold the signing keys, and the anchor is out of their reach.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
from sqlalchemy.exc import SQLAlchemyError

from appliance.errors import ApplianceError, IntegrityError
from appliance.events.catalog import event
from appliance.events.key import KeyLocked, KeyUnlocked
from appliance.ledger import merkle
from appliance.ledger.leaf import Actor
from appliance.ledger.ledger import Ledger
from appliance.ledger.reading import LedgerReader
from appliance.ledger.rows import DatasetRow, row_digest
from appliance.ledger.verify import Verification
from tests.builders import dataset_row, ledger_config, model_row, policy_row, run_row

ENTRIES = 300  # a full tile and a part of the next
SIGNED_EARLY = 4
DATASET_AT = 1
ACTOR = Actor("p-1", "Ann Example")


configuration = ledger_config


def dataset(key: str = "ds-1", name: str = "reviews") -> DatasetRow:
    return dataset_row(id=key, name=name)


def fill(ledger: Ledger) -> None:
    with ledger.transaction(ACTOR, reason="made for tests") as tx:
        tx.datasets.add(dataset())
        tx.datasets.add(dataset("ds-2", "letters"))
        tx.append(KeyLocked())
    with ledger.transaction(ACTOR) as tx:
        tx.models.add(model_row())
        tx.policies.add(policy_row())
        tx.append(event("key.locked", {}))
    with ledger.transaction(ACTOR, reason="a run") as tx:
        tx.runs.add(run_row(id="r-1", state="finished", policy_sha256="11" * 32))
        tx.append(event("key.locked", {}))
    ledger.sign()
    for _ in range(3):
        with ledger.transaction(ACTOR, reason="filling") as tx:
            for _ in range(ENTRIES // 3 - 2):
                tx.append(KeyUnlocked(until="expired"))
        ledger.sign()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed ledger: everything is checkpointed into the one database file."""
    home = tmp_path_factory.mktemp("ledger")
    with Ledger.create(configuration(home)) as ledger:
        fill(ledger)
    assert sorted(path.name for path in home.iterdir()) == ["anchor", "ledger.db", "signing"]
    return home


@pytest.fixture
def home(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "home"))


def verify(home: Path) -> Verification:
    with LedgerReader.open(configuration(home), checked=False) as ledger:
        return ledger.verify()


def attack(home: Path, *statements: str, unguarded: bool = True) -> None:
    """Run SQL on the database file, with every guard put aside and back again unless asked otherwise."""
    raw = sqlite3.connect(home / "ledger.db", isolation_level=None)
    raw.execute("PRAGMA synchronous=OFF")
    guards = raw.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall() if unguarded else []
    for name, _ in guards:
        raw.execute(f"DROP TRIGGER {name}")
    for statement in statements:
        raw.execute(statement)
    for _, sql in guards:
        raw.execute(sql)
    raw.close()


def test_the_original_verifies(home: Path) -> None:
    found = verify(home)
    assert found.problems == ()
    assert (found.entries, found.signed_size) == (ENTRIES - 2, ENTRIES - 2)
    attack(home)  # putting the guards aside and back leaves no trace, so the tests below see only their own damage
    assert verify(home).problems == ()


SMALLEST = "(SELECT min(event_id) FROM entry)"


def test_a_state_that_does_not_exist_can_neither_be_written_nor_read(home: Path) -> None:
    def write() -> None:
        with Ledger.open(configuration(home)) as ledger, ledger.transaction(ACTOR) as tx:
            tx.runs.update(tx.runs.get("r-1"), state="settled")
            tx.append(KeyLocked())

    with pytest.raises(ApplianceError, match="there is no RunState"):
        write()
    assert verify(home).problems == ()
    attack(home, "UPDATE run SET state = 'settled'")
    assert verify(home).problems == (f"run r-1 is not what entry {DATASET_AT + 2} says",)
    for checked, said in ((True, "run r-1 is not what the ledger says"), (False, "there is no RunState")):
        with LedgerReader.open(configuration(home), checked=checked) as ledger, ledger.read() as rows:
            with pytest.raises(IntegrityError, match=said):
                rows.runs.get("r-1")
            assert rows.datasets.get("ds-1").state == "active"


@pytest.mark.parametrize(
    ("damage", "first_bad"),
    [
        ("UPDATE entry SET leaf = replace(leaf, 'expired', 'EXPIRED') WHERE idx = 77", 77),
        ("UPDATE entry SET leaf = CAST(leaf AS TEXT) WHERE idx = 77", 77),
        ("UPDATE entry SET leaf = X'' WHERE idx = 5", 5),
        ("UPDATE entry SET type = 'key.created' WHERE idx = 9", 9),
        ("UPDATE entry SET ts = '2000-01-01T00:00:00.000000Z' WHERE idx = 9", 9),
        ("UPDATE entry SET subject = 'r-1' WHERE idx = 2", 2),
        ("UPDATE entry SET leaf_hash = zeroblob(32) WHERE idx = 290", 290),
        ("DELETE FROM entry WHERE idx = 100", 100),
        ("DELETE FROM entry WHERE idx = 0", 0),
        ("DELETE FROM entry WHERE idx >= 290", 290),
        ("UPDATE entry SET idx = CASE idx WHEN 50 THEN -51 WHEN 51 THEN -50 END WHERE idx IN (50, 51)", 0),
        ("INSERT INTO entry SELECT 298, 'x', leaf, leaf_hash, type, ts, subject FROM entry WHERE idx = 297", 298),
        ("UPDATE body SET sealed = zeroblob(10) WHERE idx = 1", 1),
        ("DELETE FROM body WHERE idx = 1", 1),
        ("UPDATE body SET idx = 7 WHERE idx = 3", 3),
        ("INSERT INTO body VALUES (0, X'00')", 0),
        ("UPDATE tile SET hashes = zeroblob(8192)", 0),
        ("UPDATE tile SET hashes = CAST(substr(hashes, 1, 3200) || zeroblob(32) || substr(hashes, 3233) AS BLOB)", 100),
        ("UPDATE tile SET root = zeroblob(32)", 0),
        ("DELETE FROM tile", 0),
        ("UPDATE head SET size = 299", None),
        ("UPDATE head SET frontier = zeroblob(32)", None),
        ("DELETE FROM head", None),
        ("DELETE FROM tree_head WHERE n = 1", None),
        ("DELETE FROM tree_head WHERE n = (SELECT max(n) FROM tree_head)", None),
        ("DELETE FROM tree_head", None),
        ("UPDATE tree_head SET size = 5 WHERE n = 1", None),
        ("UPDATE tree_head SET note = replace(note, 'hospital', 'hospice')", None),
        ("UPDATE tree_head SET note = note || '— x AAAAAAAAAAA=' || char(10) WHERE n = 0", None),
        ("UPDATE tree_head SET note = CAST(note AS BLOB)", None),
        ("UPDATE dataset SET declared_units = 1000000 WHERE id = 'ds-1'", DATASET_AT),
        ("UPDATE dataset SET declared_units = '1000' || '' WHERE id = 'x' OR id = 'ds-1' AND 0", "none"),
        ("UPDATE dataset SET unit_key = 'patient' WHERE id = 'ds-1'", DATASET_AT),
        ("UPDATE dataset SET state = CAST('active' AS BLOB) WHERE id = 'ds-1'", DATASET_AT),
        ("UPDATE dataset SET event_id = (SELECT event_id FROM entry WHERE idx = 5) WHERE id = 'ds-1'", DATASET_AT),
        ("UPDATE run SET epsilon_reserved = 8.0", 3),
        ("UPDATE run SET epsilon_charged = '0.1'", 3),
        ("DELETE FROM run", 3),
        ("DELETE FROM policy", 2),
        (f"INSERT INTO policy VALUES ('22', 'lax', 'x', 'active', {SMALLEST})", None),
        ("UPDATE model SET id = 'm-2'", 2),
        ("UPDATE alembic_version SET version_num = '0000'", None),
        ("DROP INDEX entry_by_type", None),
        ("CREATE TRIGGER evil AFTER INSERT ON entry BEGIN UPDATE run SET state = 'x'; END", None),
        ("ALTER TABLE run ADD COLUMN extra TEXT", None),
    ],
)
def test_damage_is_found_and_named(home: Path, damage: str, first_bad: int | str | None) -> None:
    attack(home, damage)
    found = verify(home)
    if first_bad == "none":  # a statement that changes nothing: the control
        assert found.ok
        return
    assert not found.ok
    assert found.first_bad == first_bad


@pytest.mark.parametrize("kind", ["insert", "update", "delete"])
@pytest.mark.parametrize("table", ["entry", "body", "tile", "head", "tree_head", "dataset", "model", "run", "policy"])
def test_a_dropped_guard_is_found_and_stops_writing(home: Path, table: str, kind: str) -> None:
    attack(home, f"DROP TRIGGER {table}_{kind}", unguarded=False)
    assert verify(home).problems == (f"trigger {table}_{kind} is missing from the database",)
    with pytest.raises(IntegrityError, match=f"trigger {table}_{kind}"):
        Ledger.open(configuration(home))


ANY_EVENT = "(SELECT event_id FROM entry WHERE idx = 5)"
NEW_POLICY = "INTO policy (sha256, name, text, state, event_id) VALUES"


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO entry SELECT idx, 'x', leaf, leaf_hash, type, ts, subject FROM entry WHERE idx = 3",
        "INSERT INTO entry SELECT 999, 'x', leaf, leaf_hash, type, ts, subject FROM entry WHERE idx = 3",
        "REPLACE INTO entry SELECT idx, event_id, X'00', leaf_hash, type, ts, subject FROM entry WHERE idx = 3",
        "REPLACE INTO entry SELECT 298, event_id, X'00', leaf_hash, type, ts, subject FROM entry WHERE idx = 3",
        "UPDATE entry SET leaf = X'00' WHERE idx = 3",
        "UPDATE OR REPLACE entry SET idx = 4 WHERE idx = 3",
        "DELETE FROM entry",
        "REPLACE INTO body VALUES (1, X'00')",
        "UPDATE body SET sealed = X'00'",
        "DELETE FROM body",
        "REPLACE INTO tile SELECT level, n, zeroblob(32), hashes FROM tile",
        "UPDATE tile SET root = zeroblob(32)",
        "DELETE FROM tile",
        "REPLACE INTO head VALUES (1, 5, X'')",
        "UPDATE head SET size = 5",
        "DELETE FROM head",
        "REPLACE INTO tree_head VALUES (0, 999, 'x')",
        "INSERT INTO tree_head VALUES (5, 4, 'x')",
        "UPDATE tree_head SET note = 'x'",
        "DELETE FROM tree_head",
        "UPDATE dataset SET declared_units = 5",
        f"UPDATE dataset SET declared_units = 5, event_id = {ANY_EVENT}",
        "UPDATE dataset SET id = 'x', event_id = 'new' WHERE id = 'ds-1'",
        "UPDATE OR REPLACE dataset SET name = 'letters', event_id = 'new' WHERE id = 'ds-1'",
        "DELETE FROM dataset",
        f"INSERT {NEW_POLICY} ('22', 'lax', 'x', 'active', {ANY_EVENT})",
        f"INSERT {NEW_POLICY} ('22', 'lax', 'x', 'active', NULL)",
        f"REPLACE {NEW_POLICY} ('{'11' * 32}', 'lax', 'x', 'active', 'new')",
        f"INSERT OR IGNORE {NEW_POLICY} ('{'11' * 32}', 'lax', 'x', 'active', 'new')",
        "REPLACE INTO model SELECT 'm-9', sha256, source_format, source_sha256, architecture, parameters, licence, "
        "has_chat_template, files, shapes, state, 'new' FROM model",
    ],
)
@pytest.mark.parametrize("recursive", ["ON", "OFF"])
def test_guards_refuse_raw_sql(home: Path, statement: str, recursive: str) -> None:
    """Through the same file, with or without the pragma that REPLACE needs to be seen by DELETE triggers."""
    raw = sqlite3.connect(home / "ledger.db", isolation_level=None)
    raw.execute(f"PRAGMA recursive_triggers={recursive}")
    before = list(raw.iterdump())
    with pytest.raises(sqlite3.IntegrityError):
        raw.execute(statement)
    assert list(raw.iterdump()) == before
    raw.close()
    assert verify(home).ok


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE dataset SET declared_units = 5, event_id = 'new'",
        f"INSERT {NEW_POLICY} ('22', 'lax', 'x', 'active', 'new')",
    ],
)
def test_raw_row_changes_without_an_event_cannot_commit(home: Path, statement: str) -> None:
    raw = sqlite3.connect(home / "ledger.db", isolation_level=None)
    raw.execute("PRAGMA foreign_keys=ON")
    raw.execute("BEGIN")
    raw.execute(statement)
    with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
        raw.execute("COMMIT")
    raw.execute("ROLLBACK")
    assert verify(home).ok
    # An attacker leaves the pragma off; then the row is in, and verification finds it.
    raw.execute("PRAGMA foreign_keys=OFF")
    raw.execute(statement)
    raw.close()
    assert not verify(home).ok


def test_our_own_connection_cannot_commit_a_bare_row_either(home: Path) -> None:
    with (
        Ledger.open(configuration(home)) as ledger,
        pytest.raises((IntegrityError, SQLAlchemyError), match="FOREIGN KEY"),
        ledger._database.write() as connection,
    ):
        connection.exec_driver_sql("UPDATE dataset SET declared_units = 5, event_id = 'new'")
    assert verify(home).ok


def recompute(home: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    """Rewrite the whole log with every hash, tile and cache right; only the signatures stay as they were."""
    raw = sqlite3.connect(home / "ledger.db", isolation_level=None)
    raw.execute("PRAGMA synchronous=OFF")
    raw.execute("BEGIN")
    guards = raw.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
    for name, _ in guards:
        raw.execute(f"DROP TRIGGER {name}")
    leaves = change([leaf for (leaf,) in raw.execute("SELECT leaf FROM entry ORDER BY idx")])
    raw.execute("DELETE FROM entry")
    raw.execute("DELETE FROM tile")
    builder = merkle.Builder()
    for index, data in enumerate(leaves):
        leaf = orjson.loads(data)
        leaf["index"] = index
        data = orjson.dumps(leaf, option=orjson.OPT_SORT_KEYS)
        digest = merkle.leaf_hash(data)
        row = (index, leaf["event_id"], data, digest, leaf["type"], leaf["time"], leaf["subject"])
        raw.execute("INSERT INTO entry VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        for tile in builder.push(digest):
            raw.execute("INSERT INTO tile VALUES (?, ?, ?, ?)", tile)
    raw.execute("UPDATE head SET size = ?, frontier = ?", (builder.size, b"".join(builder.frontier())))
    for _, sql in guards:
        raw.execute(sql)
    raw.execute("COMMIT")
    raw.close()


def test_recomputing_everything_without_the_key_is_found(home: Path) -> None:
    recompute(home, lambda leaves: leaves)
    assert verify(home).ok  # the control: the recomputation itself is faultless

    def forge(leaves: list[bytes]) -> list[bytes]:
        leaves[200] = leaves[200].replace(b"expired", b"EXPIRED")
        return leaves

    recompute(home, forge)
    found = verify(home)
    assert any("are not those that were signed" in problem for problem in found.problems)
    assert found.first_bad == 200 - (200 - SIGNED_EARLY) % 98  # start of the signed stretch that holds it
    with pytest.raises(IntegrityError):
        Ledger.open(configuration(home))


def test_a_row_edited_together_with_its_leaf_is_found(home: Path) -> None:
    raw = sqlite3.connect(home / "ledger.db")
    raw.row_factory = sqlite3.Row
    row = dict(raw.execute("SELECT * FROM dataset WHERE id = 'ds-1'").fetchone())
    raw.close()
    forged = row | {"declared_units": 10**6}
    old, new = (row_digest("dataset", columns).encode() for columns in (row, forged))

    def forge(leaves: list[bytes]) -> list[bytes]:
        assert old in leaves[DATASET_AT]
        leaves[DATASET_AT] = leaves[DATASET_AT].replace(old, new)
        return leaves

    attack(home, "UPDATE dataset SET declared_units = 1000000 WHERE id = 'ds-1'")
    recompute(home, forge)
    found = verify(home)
    assert found.first_bad == 1  # the stretch from the first signed head on
    assert not found.ok


@pytest.mark.parametrize(
    "change",
    [
        lambda leaves: leaves[:290],
        lambda leaves: leaves[:SIGNED_EARLY],
        lambda leaves: [*leaves[:50], leaves[51], leaves[50], *leaves[52:]],
        lambda leaves: [*leaves[:50], leaves[49].replace(b'"event_id":"0', b'"event_id":"1'), *leaves[50:]],
    ],
    ids=["cut", "cut to an older signed head", "reordered", "back-dated insertion"],
)
def test_a_recomputed_log_with_other_entries_is_found(home: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    recompute(home, change)
    assert not verify(home).ok
    with pytest.raises(IntegrityError):
        Ledger.open(configuration(home))


def test_an_older_copy_of_the_database_is_behind_its_anchor(home: Path, tmp_path: Path) -> None:
    older = tmp_path / "older.db"
    shutil.copy(home / "ledger.db", older)
    with Ledger.open(configuration(home)) as ledger, ledger.transaction(ACTOR) as tx:
        tx.append(KeyLocked())
    shutil.copy(older, home / "ledger.db")
    found = verify(home)
    assert any("behind its anchor" in problem for problem in found.problems)
    assert found.first_bad == ENTRIES - 2
    with pytest.raises(IntegrityError, match="rolled back"):
        Ledger.open(configuration(home))


def test_a_fork_is_not_signed(home: Path, tmp_path: Path) -> None:
    """The database is set back and grows past its anchor with other entries: the signer refuses."""
    shutil.copytree(home, tmp_path / "other")
    other = configuration(tmp_path / "other")
    with Ledger.open(other) as ledger, ledger.transaction(ACTOR) as tx:
        tx.append(KeyUnlocked(until="one history"))
    ledger = Ledger.open(configuration(home))
    with ledger.transaction(ACTOR) as tx:
        tx.append(KeyUnlocked(until="another history"))
        tx.append(KeyLocked())
    shutil.copy(other.anchor, home / "anchor")
    with pytest.raises(IntegrityError, match="not those that were anchored"):
        ledger.sign()
    assert not ledger.verify().ok
    (home / "anchor").unlink()
    with pytest.raises(IntegrityError, match="missing"):
        ledger.close()  # closing signs what is left, and refuses as well


def test_a_replaced_key_is_found(home: Path, tmp_path: Path) -> None:
    with Ledger.create(configuration(tmp_path)) as stranger:
        fill(stranger)
        pinned = stranger.verifier_keys
    # The signing keys alone: what was signed does not verify with them, and nothing is signed.
    shutil.copytree(home, tmp_path / "keys only")
    shutil.rmtree(tmp_path / "keys only" / "signing")
    shutil.copytree(tmp_path / "signing", tmp_path / "keys only" / "signing")
    assert not verify(tmp_path / "keys only").ok
    with pytest.raises(IntegrityError):
        Ledger.open(configuration(tmp_path / "keys only"))
    # A whole other ledger under the old keys and anchor.
    shutil.copy(tmp_path / "ledger.db", home / "ledger.db")
    assert not verify(home).ok
    # A whole other home is perfect in itself; only a key pinned elsewhere tells.
    assert verify(tmp_path).ok
    with LedgerReader.open(configuration(home), checked=False) as ours:
        trusted = ours.verifier_keys
    assert trusted != pinned
    with LedgerReader.open(configuration(tmp_path)) as ledger:
        assert ledger.verify(trusted=pinned).ok
        assert not ledger.verify(trusted=trusted).ok


@pytest.mark.parametrize("damage", ["missing", "empty", "flipped", "of another size"])
def test_a_damaged_anchor_is_found(home: Path, damage: str) -> None:
    anchor = home / "anchor"
    text = anchor.read_bytes()
    anchor.unlink()
    if damage == "empty":
        anchor.write_bytes(b"")
    elif damage == "flipped":
        anchor.write_bytes(text[:300] + bytes([text[300] ^ 1]) + text[301:])
    elif damage == "of another size":
        anchor.write_bytes(text.replace(b"\n298\n", b"\n297\n"))
    assert not verify(home).ok
    with pytest.raises(IntegrityError):
        Ledger.open(configuration(home))


def test_a_missing_table_is_found(home: Path) -> None:
    attack(home, "DROP TABLE run", unguarded=False)
    assert verify(home).problems == ("table run is missing from the database",)


def test_other_peoples_tables_are_tolerated(home: Path) -> None:
    attack(home, "CREATE TABLE theirs (x)", "INSERT INTO theirs VALUES (1)", unguarded=False)
    assert verify(home).ok
    Ledger.open(configuration(home)).close()


def test_a_rebuilt_table_loses_its_guards_and_that_is_found(home: Path) -> None:
    """What Alembic's batch mode does on SQLite: copy, drop, rename."""
    attack(
        home,
        "CREATE TABLE copied AS SELECT * FROM policy",
        "DROP TABLE policy",
        "ALTER TABLE copied RENAME TO policy",
        unguarded=False,
    )
    assert "trigger policy_update is missing from the database" in verify(home).problems


def dump(path: Path) -> list[object]:
    """Every definition and every row with the type of every value."""
    raw = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        tables = raw.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name").fetchall()
        result: list[object] = list(tables)
        for kind, name, _, _ in tables:
            if kind == "table":
                result += [(name, *row) for row in raw.execute(f'SELECT * FROM "{name}"')]
        return result
    finally:
        raw.close()


def places(size: int, count: int) -> list[tuple[int, int]]:
    """(offset, bit) pairs, spread over all pages of the file, every other one in the first bytes of its page."""
    chooser = random.Random(20)
    pages = size // 4096
    within = ((4096 * (i % pages), chooser.randrange(100 if i % 2 else 4096)) for i in range(count))
    return [(page + offset, 1 << chooser.randrange(8)) for page, offset in within]


@pytest.mark.timeout(3600)  # the full count on a busy machine
def test_no_single_flipped_byte_of_the_database_goes_unnoticed(
    original: Path, tmp_path: Path, stress_count: Callable[[int, int], int]
) -> None:
    """Either verification finds it, or it is in a place that means nothing: all definitions and rows are the same."""
    home = Path(shutil.copytree(original, tmp_path / "home"))
    path = home / "ledger.db"
    good = path.read_bytes()
    expected = dump(path)
    found = harmless = 0
    for offset, bit in places(len(good), stress_count(150, 3000)):
        path.write_bytes(good[:offset] + bytes([good[offset] ^ bit]) + good[offset + 1 :])
        for leftover in home.glob("ledger.db-*"):
            leftover.unlink()
        try:
            ok = verify(home).ok
        except ApplianceError:
            ok = False
        if ok:
            for leftover in home.glob("ledger.db-*"):
                leftover.unlink()
            assert dump(path) == expected, f"flip of bit {bit} at {offset} was not noticed"
            harmless += 1
        else:
            found += 1
    assert found * 2 > harmless  # much of a small database is empty pages


def test_a_damaged_write_ahead_log_loses_nothing_silently(original: Path, tmp_path: Path) -> None:
    """A flip in the log beside the database cuts off what follows it; everything signed is then behind the anchor."""
    home = Path(shutil.copytree(original, tmp_path / "home"))
    ledger = Ledger.open(configuration(home))
    for _ in range(3):
        with ledger.transaction(ACTOR) as tx:
            tx.append(KeyLocked())
        ledger.sign()
    for name in ("ledger.db", "ledger.db-wal", "anchor"):
        shutil.copy(home / name, tmp_path / name)
    ledger.close()
    log = (tmp_path / "ledger.db-wal").read_bytes()
    chooser = random.Random(7)
    unnoticed = 0
    for _ in range(25):
        target = tmp_path / "crashed"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(original, target)
        offset = chooser.randrange(len(log))
        shutil.copy(tmp_path / "ledger.db", target)
        shutil.copy(tmp_path / "anchor", target)
        (target / "ledger.db-wal").write_bytes(log[:offset] + bytes([log[offset] ^ 4]) + log[offset + 1 :])
        try:
            found = verify(target)
        except ApplianceError:
            continue
        if found.ok:
            unnoticed += 1
            assert found.entries == ENTRIES + 1
    assert unnoticed < 25
