"""The shell's completion: names of the home, at once; and nothing, silently, where there is a problem."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from appliance.ledger.glance import glance
from tests.e2e.conftest import Appliance


def complete(home: Path | str, words: str, **environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-I", "-m", "appliance"],
        env={
            **os.environ, "_APPLIANCE_COMPLETE": "complete_bash", "COMP_WORDS": f"appliance {words}",
            "COMP_CWORD": str(len(words.split(" "))), "APPLIANCE_HOME": str(home), **environment,
        },
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("data show ", ["notes"]),
        ("data retire n", ["notes"]),
        ("data verify x", []),
        ("budget show ", ["notes"]),
        ("train plan ", ["notes"]),
        ("train plan notes ", ["tiny"]),
        ("model verify t", ["tiny"]),
        ("evaluate run x --dataset ", ["notes"]),
        ("train abort ", []),
        ("policy check he", ["health"]),
        ("init --policy d", ["default", "demo"]),
    ],
)
def test_names_of_the_home_are_offered(sealed: Appliance, words: str, offered: list[str]) -> None:
    assert complete(sealed.home, words) == offered


def test_the_home_that_is_named_is_looked_at(sealed: Appliance) -> None:
    assert complete("/nowhere", f"--home {sealed.home} data show ") == ["notes"]


def test_on_any_problem_nothing_is_offered(sealed: Appliance, tmp_path: Path) -> None:
    home = sealed.home
    assert complete(tmp_path, "data show ") == []
    (home / "ledger.db").write_bytes(b"no database")
    assert complete(home, "data show ") == []
    for config in (b"{}", b"[]", b"\xff", b'{"database_url": "postgresql://nobody@nowhere/x"}', b'{"database_url": 7}'):
        (home / "home.json").write_bytes(config)
        assert complete(home, "data show ") == []


def test_names_that_play_tricks_are_not_offered(sealed: Appliance) -> None:
    with sqlite3.connect(sealed.home / "ledger.db") as database:
        database.execute("DROP TRIGGER dataset_update")
        database.execute("UPDATE dataset SET name = 'x$(reboot)\x1b[2J'")
    assert complete(sealed.home, "data show ") == []


def test_a_glance_takes_no_time_and_writes_nothing(sealed: Appliance) -> None:
    database = sealed.home / "ledger.db"
    before = database.read_bytes()
    began = time.process_time()
    assert glance(database, "dataset") == [("notes", "training, active")]
    with sqlite3.connect(database, isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        glance(database, "run")
        other.execute("ROLLBACK")
    assert time.process_time() - began < 0.3
    assert database.read_bytes() == before
