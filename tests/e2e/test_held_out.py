"""`data ingest --held-out`: two datasets, each with a budget of its own, and an evaluation takes the second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from appliance.cli.app import run
from appliance.flows.home import Home
from tests.e2e.conftest import TOKEN, Appliance, write_notes

COLUMNS = ("--prompt", "question", "--completion", "answer")


@pytest.fixture
def say(
    appliance: Appliance, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("APPLIANCE_HOME", str(appliance.home))

    def said(words: str, expect: int = 0) -> dict[str, Any]:
        assert run([*words.split(), "--json"]) == expect, capsys.readouterr().err
        out, err = capsys.readouterr()
        assert TOKEN not in out + err
        document: dict[str, Any] = json.loads(out)
        return document

    return said


INGEST = f"data ingest many.csv --name many --subject patient --max-records 2 --units 2500 {' '.join(COLUMNS)}"


def write_many(path: Path) -> None:
    """Write notes of 2500 people who are not among those of `notes`."""
    write_notes(path, 5000)
    lines = path.read_text().replace("number", "another number").splitlines()
    path.write_text("\n".join([lines[0], *("x" + line for line in lines[1:])]) + "\n")


def test_one_ingest_makes_two_datasets(say: Any, appliance: Appliance, tmp_path: Path) -> None:
    write_many(tmp_path / "many.csv")
    objects = len(list((appliance.home / "objects").iterdir()))
    assert say(f"{INGEST} --held-out 1%", 4)["message"].startswith("25 declared units")
    tried = say(f"{INGEST} --held-out 40% --dry-run")
    assert tried["datasets"] == {"many": 1500, "many-held-out": 1000}
    assert len(list((appliance.home / "objects").iterdir())) == objects

    made = say(f"{INGEST} --held-out 40%")
    apart = made["held_out"]
    assert (made["declared_units"], apart["declared_units"]) == (1500, 1000)
    assert (made["purpose"], apart["purpose"]) == ("training", "evaluation")
    assert say("data show many-held-out")["source"] == "unsigned local files; the 40% of units that are held out"
    assert say("data show many")["source"] == "unsigned local files; without the 40% held out"
    for id_, other in ((made["id"], apart["id"]), (apart["id"], made["id"])):
        (entry,) = say(f"ledger log --type data.sealed --subject {id_}")["entries"]
        facts = say(f"ledger show {entry['index']}")["leaf"]["facts"]
        assert (facts["held_out"], facts["divided_with"], facts["overlaps"]) == ("0.4", other, [])
    say("train plan many-held-out tiny --epsilon 1", 4)
    assert len(say("budget show")["budgets"]) == 3
    say("ledger verify --deep")


@pytest.mark.stress
def test_an_evaluation_takes_what_was_held_out(say: Any, tmp_path: Path) -> None:
    write_many(tmp_path / "many.csv")
    say(f"{INGEST} --held-out 40%")
    small = "--steps 2 --batch 60 --max-tokens 64 --rank 2 --epsilon 2"
    say(f"train plan many tiny --out run.yaml {small}")
    done = say("train start run.yaml")["run"]
    say(f"evaluate run {done} --dataset many-held-out --public-tokens 0")
    say("ledger verify --deep")


def test_two_datasets_come_to_be_together_or_not_at_all(
    say: Any, appliance: Appliance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The units are there, but nearly all are of two people: the held-out side has none, and nothing stays."""
    (tmp_path / "many.csv").write_text(
        "patient,question,answer\n" + "".join(f"p{n % 1100},how is {n}?,{TOKEN} {n}\n" for n in range(1300))
    )
    before = sorted((appliance.home / "objects").iterdir())
    say(INGEST.replace("2500", "4000") + " --held-out 50%", 6)
    assert sorted((appliance.home / "objects").iterdir()) == before
    with Home.open(appliance.home).rows() as rows:
        assert [row.name for row in rows.datasets.list()] == ["notes"]
    say(INGEST.replace("2500", "1100").replace("--name many", "--name notes") + " --held-out 50%", 2)
    say(INGEST.replace("2500", "1100") + " --held-out 50% --held-out-name notes", 2)
