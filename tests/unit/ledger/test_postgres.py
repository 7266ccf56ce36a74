"""What only a database server has: roles, concurrent writers, settings that would lose entries, error codes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from appliance.errors import (
    ApplianceError,
    ArtefactMissing,
    Busy,
    ConfigInvalid,
    IntegrityError,
    UsageError,
    WillNotFit,
)
from appliance.events.key import KeyLocked
from appliance.events.ledger import BodyErased
from appliance.events.policy import PolicyActivated
from appliance.ledger import dialect, postgres
from appliance.ledger.config import LedgerConfig
from appliance.ledger.leaf import Actor
from appliance.ledger.ledger import Ledger
from appliance.ledger.reading import LedgerReader
from appliance.ledger.rows import PolicyRow
from tests.databases import PostgresDatabase
from tests.postgres import APPLICATION, ERASER, OWNER


@pytest.fixture
def behind(postgres_database: PostgresDatabase) -> PostgresDatabase:
    return postgres_database


@pytest.fixture
def as_application(ledger: Ledger, behind: PostgresDatabase) -> Iterator[psycopg.Connection[Any]]:
    with behind.server.connect(behind.name, APPLICATION) as raw:
        yield raw


FORBIDDEN = (
    "UPDATE entry SET leaf = ''",
    "DELETE FROM entry",
    "TRUNCATE entry CASCADE",
    "DELETE FROM body",
    "UPDATE body SET sealed = ''",
    "UPDATE tile SET root = ''",
    "DELETE FROM tree_head",
    "INSERT INTO head VALUES (2, 0, '')",
    "DELETE FROM dataset",
    "UPDATE alembic_version SET version_num = '0001'",
    "ALTER TABLE entry DISABLE TRIGGER ALL",
    "DROP TRIGGER entry_update ON entry",
    "DROP TABLE run",
    "CREATE TABLE public.entry2 ()",
    "CREATE OR REPLACE FUNCTION guard_entry_delete() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN END'",
    "SET session_replication_role = replica",
)


def test_the_application_has_no_right_to(as_application: psycopg.Connection[Any]) -> None:
    for statement in FORBIDDEN:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            as_application.execute(statement.encode())


def test_the_eraser_erases_bodies_that_an_entry_names_and_nothing_else(
    ledger: Ledger, actor: Actor, behind: PostgresDatabase
) -> None:
    with ledger.transaction(actor, reason="why") as tx:
        tx.append(KeyLocked())
    with behind.server.connect(behind.name, ERASER) as raw:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            raw.execute("DELETE FROM entry")
        with pytest.raises(psycopg.errors.IntegrityConstraintViolation, match="no entry says"):
            raw.execute("DELETE FROM body")
        with ledger.transaction(Actor("p-2", "")) as tx:
            tx.append(BodyErased(index=1))
        raw.execute("DELETE FROM body")
    assert ledger.verify().bodies == {"erased": 1}


def test_no_entry_says_erased_when_the_role_may_not(ledger: Ledger, config: LedgerConfig, actor: Actor) -> None:
    with ledger.transaction(actor) as tx:
        tx.append(KeyLocked())
    with Ledger.open(replace(config, eraser_url="")) as without, pytest.raises(ArtefactMissing):
        without.erase(1, actor)
    assert ledger.verify().entries == 2
    assert ledger.erase(1, Actor("p-2", "")) == 2


def test_guards_hold_for_the_owner_and_for_replicated_changes(ledger: Ledger, behind: PostgresDatabase) -> None:
    with behind.server.connect(behind.name, OWNER) as raw, pytest.raises(psycopg.errors.IntegrityConstraintViolation):
        raw.execute("TRUNCATE entry CASCADE")
    with behind.server.connect(behind.name) as raw:
        raw.execute("SET session_replication_role = replica")
        with pytest.raises(psycopg.errors.IntegrityConstraintViolation):
            raw.execute("UPDATE entry SET leaf = ''")


@pytest.mark.parametrize(
    ("tampering", "named"),
    [
        ("ALTER TABLE entry DISABLE TRIGGER entry_update", "trigger entry_update was altered"),
        ("ALTER TABLE entry ENABLE TRIGGER entry_update", "trigger entry_update was altered"),
        ("ALTER TABLE dataset DISABLE TRIGGER ALL", "constraint trigger dataset_event_id_fkey"),
        (
            "CREATE OR REPLACE FUNCTION guard_run_delete() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN OLD; END'",
            "",
        ),
        ("ALTER TABLE run DROP CONSTRAINT run_event_id_fkey", "constraint run_event_id_fkey is missing"),
        ("ALTER TABLE tile SET UNLOGGED", "table tile was altered"),
        ("ALTER TABLE run ENABLE ROW LEVEL SECURITY", "table run was altered"),
        ("CREATE RULE quiet AS ON INSERT TO policy DO INSTEAD NOTHING", "rule quiet was added"),
        ("CREATE TABLE more () INHERITS (run)", "inheritance run more was added"),
        ("GRANT DELETE ON body TO PUBLIC", "grants of body was altered"),
        ("GRANT UPDATE (leaf) ON entry TO ledger_app", "grants of entry was altered"),
        ("ALTER TABLE entry OWNER TO ledger_app", "grants of entry was altered"),
    ],
)
def test_altered_definitions_are_named(
    ledger: Ledger, config: LedgerConfig, behind: PostgresDatabase, tampering: str, named: str
) -> None:
    behind.execute(tampering)
    problems = ledger.verify().problems
    assert any(named in problem for problem in problems)
    with pytest.raises(IntegrityError):
        Ledger.open(config)


def test_two_appliances_on_one_database_never_fork(
    ledger: Ledger, config: LedgerConfig, actor: Actor, tmp_path: Path
) -> None:
    """Each decides on what the other committed: of many that take the same name, one wins."""
    clashes = []

    def work(opened: Ledger, number: int) -> None:
        for step in range(25):
            try:
                with opened.transaction(actor) as tx:
                    tx.policies.add(PolicyRow(sha256=f"{step}", name=f"{number}", text="", state="active"))
                    tx.append(PolicyActivated(name="n", sha256=f"{step:064}"))
            except UsageError:
                clashes.append(number)
            if step % 5 == number:
                opened.sign()

    second = replace(config, anchor=tmp_path / "second-anchor")
    second.anchor.write_bytes(config.anchor.read_bytes())
    others = [ledger, Ledger.open(second)]
    threads = [threading.Thread(target=work, args=(opened, number)) for number, opened in enumerate(others)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(clashes) == 25
    for opened in others:
        opened.sign()
        found = opened.verify()
        assert found.problems == ()
        assert len(list(opened.entries(type="policy.activated"))) == 25
    others[1].close()


def test_a_writer_that_does_not_queue_cannot_fork_the_log(
    ledger: Ledger, behind: PostgresDatabase, actor: Actor
) -> None:
    """It decided on a head that has moved since: at this isolation level it cannot even lock it."""
    with behind.server.connect(behind.name, APPLICATION) as raw:
        raw.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        raw.execute("SELECT * FROM head")
        with ledger.transaction(actor) as tx:
            tx.append(KeyLocked())
        with pytest.raises(psycopg.errors.SerializationFailure):
            raw.execute("SELECT * FROM head FOR UPDATE")
        raw.execute("ROLLBACK")
    assert ledger.verify().ok


def test_an_upgrade_needs_the_owner(config: LedgerConfig, clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from functools import partial

    from appliance.ledger import migration

    with monkeypatch.context() as patch:
        patch.setattr(migration, "upgrade", partial(migration.upgrade, revision="0001"))
        Ledger.create(config, clock=clock).close()
    with pytest.raises(ArtefactMissing):
        Ledger.open(replace(config, owner_url=""))
    Ledger.open(config).close()
    with Ledger.open(replace(config, owner_url="")) as ledger:
        assert ledger.verify().ok


def test_a_server_that_could_lose_entries_is_refused(
    ledger: Ledger, config: LedgerConfig, behind: PostgresDatabase
) -> None:
    behind.execute(f"ALTER ROLE {APPLICATION} IN DATABASE {behind.name} SET session_replication_role = replica")
    with pytest.raises(ConfigInvalid, match="session_replication_role"):
        Ledger.open(config)
    with LedgerReader.open(config) as reader:
        assert reader.verify().ok


def test_a_database_with_another_ledger_is_refused(ledger: Ledger, config: LedgerConfig, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="another ledger"):
        Ledger.create(replace(config, signing_dir=tmp_path / "other", anchor=tmp_path / "other-anchor"))


def test_findings_say_what_an_administrator_may_change(ledger: Ledger, config: LedgerConfig) -> None:
    findings = {found.name: found for found in ledger.findings()}
    assert findings["database"].detail.startswith("PostgreSQL ")
    assert findings["database role"].good
    assert findings["database amcheck"].good
    with Ledger.open(replace(config, url=config.owner_url)) as owned:
        assert not {found.name: found for found in owned.findings()}["database role"].good


def test_a_damaged_index_is_found_by_the_deep_check(ledger: Ledger, actor: Actor, behind: PostgresDatabase) -> None:
    """An index that lacks a row hides it from a lookup although the table still has it."""
    with ledger.transaction(actor) as tx:
        tx.policies.add(PolicyRow(sha256="11", name="n", text="", state="active"))
        tx.append(PolicyActivated(name="n", sha256="11" * 32))
    assert ledger.verify().ok
    _, back = behind.guards()
    behind.execute(
        "UPDATE pg_index SET indisready = false WHERE indexrelid = 'policy_pkey'::regclass",
        "ALTER TABLE policy DISABLE TRIGGER ALL",
        "INSERT INTO policy SELECT '22', name, text, state, event_id FROM policy",
        "UPDATE pg_index SET indisready = true WHERE indexrelid = 'policy_pkey'::regclass",
        *back,
    )
    assert any("policy_pkey" in problem for problem in ledger.verify().problems)
    assert not any("policy_pkey" in problem for problem in ledger.verify(deep=False).problems)


class Failure(psycopg.Error):
    """An error with a code of the server."""

    def __init__(self, code: str) -> None:
        super().__init__("secret value")
        self.sqlstate = code


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("53100", WillNotFit),
        ("53200", WillNotFit),
        ("58030", WillNotFit),
        ("53300", Busy),
        ("55P03", Busy),
        ("40001", Busy),
        ("40P01", Busy),
        ("57P01", Busy),
        ("28P01", ArtefactMissing),
        ("3D000", ArtefactMissing),
        ("42501", ArtefactMissing),
        ("25006", ArtefactMissing),
        ("23505", IntegrityError),
        ("22021", IntegrityError),
        ("XX001", IntegrityError),
        ("42P01", IntegrityError),
    ],
)
def test_errors_of_the_server_are_explained(code: str, kind: type[ApplianceError]) -> None:
    explained = postgres.explain(Failure(code), "there")
    assert type(explained) is kind
    assert "secret" not in str(explained)


def test_a_server_that_is_not_there_is_said(config: LedgerConfig, tmp_path: Path) -> None:
    Ledger.create(config).close()
    gone = replace(config, url=f"postgresql+psycopg://x:hidden@/d?host={tmp_path}")
    with pytest.raises(ArtefactMissing, match="cannot be reached") as caught:
        Ledger.open(gone)
    assert "hidden" not in str(caught.value)


def test_a_url_without_a_database_is_refused() -> None:
    with pytest.raises(ConfigInvalid):
        dialect.parse_url("postgresql+psycopg://")


def test_a_server_that_was_started_anew_is_connected_to_again(
    config: LedgerConfig, actor: Actor, postgres_database: PostgresDatabase
) -> None:
    end = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    with Ledger.create(config) as ledger:
        postgres_database.execute(end)
        with ledger.transaction(actor) as tx:
            tx.append(KeyLocked())
        postgres_database.execute(end)
        with ledger.read() as rows:
            assert not rows.runs.list()
