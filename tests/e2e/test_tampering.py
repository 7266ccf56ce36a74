"""Rolled back homes, altered databases, altered sealed objects, a full disk: seen through the command line."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Appliance, write_notes, write_passphrase


def fresh(tmp_path: Path, *options: str) -> Appliance:
    write_passphrase(tmp_path / "passphrase.txt")
    made = Appliance(tmp_path / "home")
    made("init", *options)
    return made


def test_an_older_copy_of_the_home_is_noticed_if_the_anchor_lies_outside(tmp_path: Path) -> None:
    made = fresh(tmp_path, "--anchor", str(tmp_path / "other-disk"))
    shutil.copytree(made.home, tmp_path / "old")
    made("policy", "activate", "finance")
    made("ledger", "verify")
    assert "copy of the home older than that is noticed" in made("status").out
    shutil.rmtree(made.home)
    (tmp_path / "old").rename(made.home)
    for words in (("ledger", "verify"), ("status",), ("policy", "activate", "health"), ("budget", "show")):
        made(*words, expect=8)


def test_with_the_anchor_inside_the_same_is_not_noticed_and_status_says_so(sealed: Appliance, tmp_path: Path) -> None:
    shutil.copytree(sealed.home, tmp_path / "old")
    sealed("policy", "activate", "finance")
    shutil.rmtree(sealed.home)
    (tmp_path / "old").rename(sealed.home)
    sealed("ledger", "verify")
    assert "is not detectable" in sealed("status").out


def test_keys_replaced_by_others_are_noticed_by_whoever_pinned_them(sealed: Appliance, tmp_path: Path) -> None:
    pinned = sealed.json("ledger", "head")["fingerprint"]
    (tmp_path / "other").mkdir()
    forged = fresh(tmp_path / "other")
    forged("ledger", "verify", expect=0)
    forged("ledger", "verify", "--fingerprint", pinned, expect=8)


def test_a_row_changed_behind_the_ledger_is_named(sealed: Appliance) -> None:
    with sqlite3.connect(sealed.home / "ledger.db") as database:
        triggers = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")]
        for name in triggers:
            database.execute(f'DROP TRIGGER "{name}"')
        database.execute("UPDATE dataset SET declared_units = 100000")
    found = sealed("--json", "ledger", "verify", expect=8).document
    assert found["verdict"] == "tampered"
    assert any("dataset" in problem for problem in found["problems"])
    assert found["first_bad"] is not None


def test_a_flipped_byte_in_a_sealed_object_names_its_chunk(sealed: Appliance) -> None:
    digest = sealed.json("data", "show", "notes")["object_blake3"]
    path = sealed.home / "objects" / digest
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.write_bytes(data)
    assert "chunk 0" in sealed("data", "verify", expect=8).err


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = os.geteuid() == 0 and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", place], check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("mounting a small file system is not permitted here")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)  # the key agent may be ending still


def test_a_full_disk_is_said_and_loses_nothing(small_disk: Path, tmp_path: Path) -> None:
    made = fresh(small_disk)
    made("key", "unlock")
    try:
        notes = tmp_path / "notes.csv"
        write_notes(notes, 40_000)
        before = made.json("ledger", "verify")["entries"]
        objects = sorted((made.home / "objects").iterdir())
        columns = ("--prompt", "question", "--completion", "answer")
        made("data", "ingest", str(notes), "--name", "big", "--units", "40000", *columns, expect=9)
        assert sorted((made.home / "objects").iterdir()) == objects
        assert made.json("ledger", "verify")["entries"] >= before
    finally:
        made("key", "lock", expect=None)
