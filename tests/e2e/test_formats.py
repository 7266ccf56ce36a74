"""The same notes as JSON array, Parquet and workbook: the same people, whatever the file."""

from __future__ import annotations

import csv
import json
import zipfile
from pathlib import Path

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from appliance.cli.app import run
from tests.e2e.conftest import TOKEN, Appliance

COLUMNS = ("--prompt", "question", "--completion", "answer", "--units", "600")


@pytest.fixture
def home(appliance: Appliance, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Appliance:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("APPLIANCE_HOME", str(appliance.home))
    return appliance


def write_all(directory: Path) -> list[str]:
    with (directory / "notes.csv").open() as file:
        rows = list(csv.DictReader(file))
    (directory / "notes.json").write_text(json.dumps(rows, indent=1))
    pq.write_table(pa.Table.from_pylist(rows), directory / "notes.parquet")
    book = openpyxl.Workbook()
    for row in (list(rows[0]), *(list(row.values()) for row in rows)):
        book.active.append(row)
    book.create_sheet("Draft").append(["nothing"])
    book.save(directory / "notes.xlsx")
    return ["notes.json", "notes.parquet", "notes.xlsx"]


def test_every_format_gives_the_same_people(
    home: Appliance, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = home.json("data", "show", "notes")["id"]
    capsys.readouterr()
    for file in write_all(tmp_path):
        name = file.partition(".")[2]
        assert run(["data", "ingest", file, "--name", name, *COLUMNS]) == 0, capsys.readouterr().err
        out, err = capsys.readouterr()
        (shared,) = (line for line in out.splitlines() if "shares units of privacy with " in line)
        assert known in shared
        assert ("sheet 'Sheet'; 1 other is left out" in err) == (name == "xlsx")
        assert TOKEN not in out + err
        assert run(["data", "show", name, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["format"] == name


def test_rejected_rows_of_a_sheet_have_a_number_and_no_byte(
    home: Appliance, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_all(tmp_path)
    book = openpyxl.load_workbook("notes.xlsx")
    book["Sheet"]["C5"] = None
    book.save("notes.xlsx")
    assert run(["data", "ingest", "notes.xlsx", "--name", "holes", "--dry-run", "--json", *COLUMNS]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rejected"]
    assert row == {
        "file": "notes.xlsx", "line": 5, "offset": None, "reason": "column 'answer' is missing or null",
    }  # fmt: skip


def test_a_workbook_that_is_none_ends_with_6_and_leaves_nothing(
    home: Appliance, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a mail gateway leaves it: the members are there, and empty."""
    with zipfile.ZipFile("book.xlsx", "w") as book:
        for member in ("[Content_Types].xml", "xl/workbook.xml"):
            book.writestr(member, "<x/>")
    before = sorted((home.home / "objects").iterdir())
    assert run(["data", "ingest", "book.xlsx", "--name", "book", *COLUMNS]) == 6
    assert "no Excel workbook" in capsys.readouterr().err
    assert sorted((home.home / "objects").iterdir()) == before
