"""Creating, opening, signing, proving and reading."""

# ruff: noqa: PT012 (what must raise is leaving a transaction, so its block stands inside `raises`)

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import inspect

from appliance.errors import (
    ApplianceError,
    ArtefactMissing,
    ConfigInvalid,
    IntegrityError,
    KeyUnavailable,
    Stale,
    UsageError,
    WillNotFit,
)
from appliance.events.key import KeyLocked
from appliance.events.ledger import BodyErased
from appliance.events.policy import PolicyActivated
from appliance.files import write_atomic
from appliance.ledger import proof, schema, sqlite
from appliance.ledger.bodies import BodyVerdict
from appliance.ledger.config import LedgerConfig
from appliance.ledger.database import Database
from appliance.ledger.leaf import Actor
from appliance.ledger.ledger import Ledger
from appliance.ledger.note import VerifierKey, open_checkpoint
from appliance.ledger.reading import LedgerReader
from tests.databases import Behind, RawError, SQLiteFile, attack


def append(ledger: Ledger, actor: Actor, count: int = 1) -> None:
    with ledger.transaction(actor) as tx:
        for _ in range(count):
            tx.append(KeyLocked())


def test_a_new_ledger_says_how_it_was_made(ledger: Ledger, config: LedgerConfig, behind: Behind) -> None:
    leaf = ledger.entry(0).leaf
    assert leaf["type"] == "ledger.created"
    assert leaf["facts"]["origin"] == config.origin
    assert [key["vkey"] for key in leaf["facts"]["keys"]] == list(ledger.verifier_keys)
    assert "trigger dataset_update" in leaf["facts"]["schema"]
    head = ledger.head()
    assert head is not None
    assert head.size == 1
    assert config.anchor.read_text() == head.note
    for name in ("ed25519.seed", "mldsa44.seed"):
        assert stat.S_IMODE((config.signing_dir / name).stat().st_mode) == 0o600
    if isinstance(behind, SQLiteFile):
        assert stat.S_IMODE(behind.path.stat().st_mode) == 0o600


def test_there_is_one_ledger(ledger: Ledger, config: LedgerConfig) -> None:
    with pytest.raises(UsageError):
        Ledger.create(config)


@pytest.mark.parametrize(
    "changes",
    [
        {"origin": "with space"},
        {"origin": "a+b"},
        {"origin": ""},
        {"url": "sqlite://"},
        {"url": "nonsense"},
        {"url": "postgresql://h/d"},
        {"body_public_key": b"short"},
    ],
)
def test_unusable_configurations_are_refused(config: LedgerConfig, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigInvalid):
        Ledger.create(replace(config, **changes))


def test_no_ledger_is_not_an_empty_ledger(config: LedgerConfig, behind: Behind) -> None:
    with pytest.raises(ArtefactMissing):
        Ledger.open(config)
    Ledger.create(config).close()
    behind.lose()
    with pytest.raises(ArtefactMissing):
        Ledger.open(config)


@pytest.mark.parametrize("lost", ["keys", "tables", "genesis", "anchor"])
def test_an_interrupted_creation_is_continued(config: LedgerConfig, lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever step was the last before the crash, creating again finishes the same ledger."""

    class Crash(BaseException):
        pass

    def crash(*_: Any, **__: Any) -> None:
        raise Crash

    target = {
        "keys": "appliance.ledger.ledger.Database",
        "tables": "appliance.ledger.log.Appender.append",
        "genesis": "appliance.ledger.ledger.sign_head",
        "anchor": "appliance.ledger.anchor.Anchor.advance",
    }[lost]
    with monkeypatch.context() as patch:
        patch.setattr(target, crash)
        with pytest.raises(Crash):
            Ledger.create(config)
    with Ledger.create(config) as ledger:
        assert ledger.verify().ok
        assert ledger.verify().entries == 1


def test_closing_signs_what_is_unsigned(config: LedgerConfig, actor: Actor) -> None:
    with Ledger.create(config) as ledger:
        append(ledger, actor, 3)
        assert ledger.verify().signed_size == 1
    with LedgerReader.open(config) as ledger:
        head = ledger.head()
        assert head is not None
        assert head.size == 4
        assert ledger.verify().signed_size == 4


def test_signing_twice_signs_once(ledger: Ledger, actor: Actor) -> None:
    append(ledger, actor)
    assert ledger.sign() == ledger.sign()


def test_a_lagging_anchor_catches_up(config: LedgerConfig, actor: Actor) -> None:
    """The state after a crash between storing a tree head and anchoring it."""
    with Ledger.create(config) as ledger:
        first = config.anchor.read_text()
        append(ledger, actor)
    config.anchor.write_text(first)
    with Ledger.open(config) as ledger:
        assert ledger.verify().ok
    assert config.anchor.read_text() != first


def test_the_tree_head_verifies_with_each_key_alone(ledger: Ledger) -> None:
    head = ledger.head()
    assert head is not None
    for key in ledger.verifier_keys:
        assert open_checkpoint(head.note, [VerifierKey.parse(key)]).size == 1


def test_every_entry_is_proven_across_tiles(ledger: Ledger, actor: Actor) -> None:
    append(ledger, actor, 600)
    ledger.sign()
    for index in (0, 1, 255, 256, 511, 512, 599, 600):
        leaf = ledger.leaf(index)
        text = ledger.prove(index)
        proven = proof.verify(text, leaf, ledger.verifier_keys)
        assert (proven.index, proven.leaf["index"], proven.checkpoint.size) == (index, index, 601)
        with pytest.raises(IntegrityError):
            proof.verify(text, ledger.leaf((index + 1) % 601), ledger.verifier_keys)
    append(ledger, actor)
    with pytest.raises(Stale):
        ledger.prove(601)
    with pytest.raises(ArtefactMissing):
        ledger.prove(602)


def test_a_proof_needs_pinned_keys(ledger: Ledger, tmp_path: Path, config: LedgerConfig) -> None:
    apart = {"url": f"sqlite:///{tmp_path / 's.db'}", "owner_url": "", "eraser_url": ""}
    stranger = replace(config, **apart, signing_dir=tmp_path / "s", anchor=tmp_path / "sa")
    with Ledger.create(stranger) as other:
        text, leaf = ledger.prove(0), ledger.leaf(0)
        for trusted in ((), other.verifier_keys, (*ledger.verifier_keys, other.verifier_keys[0])):
            with pytest.raises(IntegrityError):
                proof.verify(text, leaf, trusted)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("index 2", "index 1"),
        ("index 2", "index 02"),
        ("index 2", "index -2"),
        ("index 2", "index"),
        ("tlog-proof@v1", "tlog-proof@v2"),
        ("\n\n", "\n"),
        ("index 2\n", "index 2\n" + "A" * 43 + "=\n"),
        ("index 2\n", "index 2\nnot base64\n"),
        ("\n4\n", "\n5\n"),
        ("hospital", "hospice"),
    ],
)
def test_malformed_proofs_are_refused(ledger: Ledger, actor: Actor, old: str, new: str) -> None:
    append(ledger, actor, 3)
    ledger.sign()
    text = ledger.prove(2)
    assert old in text
    with pytest.raises(IntegrityError):
        proof.verify(text.replace(old, new), ledger.leaf(2), ledger.verifier_keys)


def test_entries_are_filtered(ledger: Ledger, actor: Actor, clock: Any) -> None:
    with ledger.transaction(actor) as tx:
        tx.append(PolicyActivated(name="a", sha256="a" * 64))
        tx.append(PolicyActivated(name="b", sha256="b" * 64))
    between = clock()
    with ledger.transaction(Actor("other", "")) as tx:
        tx.append(PolicyActivated(name="again", sha256="a" * 64))
        tx.append(KeyLocked())

    def found(**wanted: Any) -> list[int]:
        return [entry.index for entry in ledger.entries(**wanted)]

    assert found() == [0, 1, 2, 3, 4]
    assert found(type="policy.activated") == found(type=PolicyActivated) == [1, 2, 3]
    assert found(subject="a" * 64, actor="other") == [3]
    assert found(subject="a" * 64, limit=1) == [1]
    assert found(limit=2, newest_first=True) == [4, 3]
    assert found(since=between) == [3, 4]
    assert found(until=between) == [0, 1, 2]
    bodies = [entry.body for entry in ledger.entries()]
    assert bodies == [None, BodyVerdict.SEALED, BodyVerdict.SEALED, None, None]


def test_bodies_open_only_with_their_key(ledger: Ledger, actor: Actor, body_key: bytes) -> None:
    with ledger.transaction(actor, reason="why") as tx:
        index = tx.append(KeyLocked())
    assert ledger.body(index, body_key) == {"name": actor.name, "reason": "why"}
    assert ledger.body(0, body_key) is None
    with pytest.raises(KeyUnavailable):
        ledger.body(index, bytes(32))
    assert ledger.verify().bodies == {"sealed": 1}
    assert not ledger.verify(body_key=bytes(32)).ok


def test_an_erased_body_is_told_from_a_missing_one(ledger: Ledger, behind: Behind, actor: Actor) -> None:
    append(ledger, actor, 2)
    append(ledger, actor)
    with pytest.raises(RawError, match="no entry says"):
        behind.execute("DELETE FROM body WHERE idx = 1")
    with ledger.transaction(Actor("eraser", "")) as tx:
        tx.append(BodyErased(index=1))
    behind.execute("DELETE FROM body WHERE idx = 1")
    assert [entry.body for entry in ledger.entries()][1:4] == ["erased", "erased", "sealed"]
    found = ledger.verify()
    assert found.ok
    assert found.bodies == {"erased": 2, "sealed": 1}
    attack(behind, "DELETE FROM body WHERE idx = 3")
    found = ledger.verify()
    assert found.bodies == {"erased": 2, "missing": 1}
    assert found.first_bad == 3


def test_an_anchor_elsewhere_bounds_what_the_key_holder_can_alter(config: LedgerConfig, actor: Actor) -> None:
    shared = Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == config.signing_dir.parent.stat().st_dev:
        pytest.skip("no second file system here")
    outside = shared / f"anchor-{os.getpid()}"
    outside.mkdir()
    try:
        with Ledger.create(replace(config, anchor=outside / "anchor")) as ledger:
            append(ledger, actor, 2)
            found = ledger.verify()
            assert (found.anchor_external, found.alterable_from, found.entries) == (True, 1, 3)
    finally:
        shutil.rmtree(outside)


def test_an_anchor_beside_the_database_bounds_nothing(ledger: Ledger) -> None:
    found = ledger.verify()
    assert (found.anchor_external, found.alterable_from) == (False, 0)


def test_a_ledger_for_reading_writes_nothing(ledger: Ledger, config: LedgerConfig, actor: Actor) -> None:
    with LedgerReader.open(config) as reader:
        for writing in ("transaction", "sign", "rotate", "erase", "add_cosignatures"):
            assert hasattr(ledger, writing)
            assert not hasattr(reader, writing)
        with pytest.raises(ApplianceError), reader._database.write() as connection:  # nor does its connection
            connection.exec_driver_sql("DELETE FROM tree_head")
        assert reader.verify().ok


def test_progress_is_reported(ledger: Ledger, actor: Actor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.ledger.verify._SHOWN_EVERY", 10)
    append(ledger, actor, 30)
    ledger.sign()
    seen: list[tuple[int, int]] = []
    ledger.verify(progress=lambda done, total: seen.append((done, total)))
    assert seen == [(10, 31), (20, 31), (30, 31)]


def test_a_full_disk_is_said(config: LedgerConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WillNotFit):
        write_atomic(tmp_path / "x", b"x")


def test_a_full_database_is_said_and_nothing_is_lost(
    ledger: Ledger, actor: Actor, config: LedgerConfig, behind: Behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not isinstance(behind, SQLiteFile):
        pytest.skip("SQLite only: a server's disk is not ours to fill; the translation of its errors is tested apart")
    pages = behind.rows("PRAGMA page_count")[0][0]
    limits = (*sqlite._PRAGMAS, f"PRAGMA max_page_count={pages + 4}")
    monkeypatch.setattr(sqlite, "_PRAGMAS", limits)
    with Ledger.open(config) as limited:
        for _ in range(5):
            with pytest.raises(WillNotFit), limited.transaction(actor) as tx:
                for _ in range(200):
                    tx.append(KeyLocked())
        append(limited, actor)
    found = ledger.verify()
    assert found.ok
    assert found.entries == 2


def test_the_migration_makes_the_tables_the_program_knows(ledger: Ledger, config: LedgerConfig) -> None:
    opened = Database(config.url, writable=False)
    with opened.read() as connection:
        found = inspect(connection)
        for table in schema.metadata.tables.values():
            columns = [
                (column["name"], str(column["type"]), column["nullable"]) for column in found.get_columns(table.name)
            ]
            assert columns == [(c.name, str(c.type.compile(connection.dialect)), c.nullable) for c in table.columns]
    opened.close()


def test_verify_answers_within_a_second_of_starting(ledger: Ledger, config: LedgerConfig) -> None:
    """CPU time of a fresh process, imports included; the wall clock of a shared machine would test the machine."""
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from appliance.ledger.config import LedgerConfig; from appliance.ledger.reading import LedgerReader\n"
        "p = Path(sys.argv[1])\n"
        "c = LedgerConfig(sys.argv[2], 'hospital.example/appliance', p/'signing', p/'anchor', bytes(32))\n"
        "with LedgerReader.open(c) as ledger: assert ledger.verify().ok\n"
        "assert 'alembic' not in sys.modules and 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
        "u = resource.getrusage(resource.RUSAGE_SELF); print(u.ru_utime + u.ru_stime)"
    )
    command = [sys.executable, "-c", code, str(config.anchor.parent), config.url]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(out.stdout) < 1.0


def test_importing_the_room_is_free() -> None:
    code = "import sys, appliance.ledger; assert 'sqlalchemy' not in sys.modules and 'cryptography' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
