"""`appliance ledger` as an administrator, an auditor and a witness use it, on PostgreSQL; other tests use SQLite."""

from __future__ import annotations

from pathlib import Path

from tests.databases import PostgresDatabase
from tests.e2e.conftest import Appliance, write_passphrase
from tests.unit.ledger.test_witness import Witness


def test_the_verbs_of_the_ledger(postgres_database: PostgresDatabase, tmp_path: Path) -> None:
    write_passphrase(tmp_path / "passphrase.txt")
    appliance = Appliance(tmp_path / "home")
    urls = postgres_database.urls
    names = {"url": "--db", "owner_url": "--db-owner", "eraser_url": "--db-eraser"}
    made = appliance.json("init", *(word for key, url in urls.items() for word in (names[key], url)))
    assert appliance.json("status")["database"].startswith("PostgreSQL")

    (entry,) = appliance.json("ledger", "log", "--type", "policy.activated")["entries"]
    assert appliance.json("ledger", "show", str(entry["index"]))["body_verdict"] == "sealed"
    assert appliance.json("ledger", "prove", "--from", "1")["proof"].startswith("appliance.consistency/1\nold 1\n")

    # What a witness cosigned, verify says so; what came after it did not see.
    witness = Witness()
    appliance("ledger", "verify", "--require-witness", expect=15)
    request, answer = tmp_path / "request", tmp_path / "answer"
    appliance("ledger", "witness", "export", "--out", str(request))
    answer.write_text(witness.answer(request.read_text()))
    (tmp_path / "home" / "keys" / "witnesses.txt").write_text(witness.key.encode() + "\n")
    appliance("ledger", "witness", "import", str(answer))
    seen = appliance.json("ledger", "verify", "--require-witness", "--fingerprint", made["fingerprint"])
    assert seen["witnessed_size"] == seen["entries"] == seen["alterable_from"]
    kept = tmp_path / "kept"
    kept.write_text(appliance.json("ledger", "head")["note"])

    erased = appliance.json("ledger", "erase", "2", "--yes", "--db-eraser", urls["eraser_url"])
    assert appliance.json("ledger", "show", "2")["body_verdict"] == "erased"
    found = appliance.json("ledger", "verify", "--head", str(kept))
    assert (found["alterable_from"], found["entries"]) == (erased["entry"], erased["entry"] + 1)
    snapshot = appliance.json("ledger", "export", str(tmp_path / "snapshot"))
    assert snapshot["size"] == found["entries"]
    assert (tmp_path / "snapshot" / "checkpoint").is_file()


def test_a_database_that_cannot_hold_a_ledger_is_refused(tmp_path: Path) -> None:
    write_passphrase(tmp_path / "passphrase.txt")
    appliance = Appliance(tmp_path / "home")
    appliance("init", "--db", "mysql://x/y", expect=3)
    assert not appliance.home.exists()
