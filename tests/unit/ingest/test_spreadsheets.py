"""CSV as spreadsheets write it in Europe: read as it was meant, or refused with the cause."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from appliance.errors import DataInvalid, UsageError
from appliance.flows.data.sources import spec_for
from appliance.ingest.dialect import detect
from appliance.ingest.ingestion import Ingestion

BOM = b"\xef\xbb\xbf"
ROWS = ["Straße 1 zur Station?", "Grüße, Bericht liegt vor"]


def ingest(path: Path, content: bytes, name: str = "auto", **said: Any) -> tuple[list[str], Ingestion]:
    path.write_bytes(content)
    said = {"text": "answer", **said}
    ingestion = Ingestion([path], spec_for([path], name, **said), b"k" * 32)
    return [record.parts[-1][1] for record in ingestion], ingestion


def table(delimiter: str, encoding: str = "utf-8", header: str = "question{}answer", end: str = "\r\n") -> bytes:
    rows = [header.format(delimiter), f'"{ROWS[0]}"{delimiter}"{ROWS[1]}"']
    return (end.join(rows) + end).encode(encoding)


WRITTEN = {
    "semicolons": table(";"),
    "bars": table("|"),
    "tabs in a .csv": table("\t"),
    "sep= line": b"sep=;\r\n" + table(";"),
    "sep= line behind a mark": BOM + b"sep=;\n" + table(";"),
    "a mark": BOM + table(","),
    "two marks": BOM + BOM + table(","),
    "Windows-1252": table(";", "cp1252"),
    "blanks in the header": table(";", header=" question {} answer\xa0"),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_it_is_read_as_it_was_meant(tmp_path: Path, name: str) -> None:
    texts, ingestion = ingest(tmp_path / "f.csv", WRITTEN[name])
    assert (texts, ingestion.rejected) == ([ROWS[1]], [])


def test_what_is_found_out_can_be_said_and_given(tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    path.write_bytes(table(";", "cp1252"))
    found = str(detect(path, spec_for([path], "auto", text="answer")))
    assert found == "UTF-8, or Windows-1252 where a line is not; columns between ';'"
    assert ingest(path, table(";", "cp1252"), delimiter=";", encoding="Windows-1252")[0] == [ROWS[1]]
    assert ingest(path, b"question;answer\na;b\n" + "c;\xfc\n".encode("cp1252"), encoding="utf-8")[1].rejected
    with pytest.raises(DataInvalid, match="no column 'answer'"):
        ingest(path, table(";"), delimiter=",")
    for wrong in ({"delimiter": "x"}, {"encoding": "ebcdic"}):
        with pytest.raises(UsageError):
            ingest(path, table(";"), **wrong)
    with pytest.raises(UsageError, match="--delimiter is said for CSV"):
        ingest(path, b"", "jsonl", text="a", delimiter=";")


def test_how_one_row_is_encoded_changes_no_other(tmp_path: Path) -> None:
    """The encoding is not decided for a file: a row that comes or goes would change how all others are read."""
    mixed = table(",", "cp1252") + "x,schön\n".encode() + "y,schöner\n".encode("cp1252")
    assert ingest(tmp_path / "f.csv", mixed)[0] == [ROWS[1], "schön", "schöner"]


@pytest.mark.parametrize("mark", [b"", BOM])
def test_a_second_header_is_not_a_record(tmp_path: Path, mark: bytes) -> None:
    texts, ingestion = ingest(tmp_path / "f.csv", BOM + table(",") + mark + table(",") + b"a,b\r\n")
    assert texts == [ROWS[1], "b"]
    assert [row.reason for row in ingestion.rejected] == ["repeats the header: files were joined"]
    with pytest.raises(DataInvalid, match="in another order"):
        ingest(tmp_path / "f.csv", table(",") + b"answer,question\nb,a\n")


def test_json_lines_in_a_json_file_are_read_and_so_is_an_array(tmp_path: Path) -> None:
    assert ingest(tmp_path / "f.json", b'{"answer": "a"}\n')[0] == ["a"]
    array = b'[{"answer": "a"},\n {"answer": "b"}]\n'
    assert ingest(tmp_path / "f.json", array)[0] == ["a", "b"]
    with pytest.raises(DataInvalid, match="one JSON array") as caught:
        ingest(tmp_path / "f.jsonl", array)
    assert "--format json" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "said"), [("b.ods", ".xlsx"), ("b.orc", "Parquet"), ("b.docx", "plain text"), ("b.bin", "--format")]
)
def test_other_formats_are_named(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        ingest(tmp_path / name, b"PK\x03\x04")
    assert said in caught.value.hint


def test_a_workbook_called_csv_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataInvalid, match="zip archive") as caught:
        ingest(tmp_path / "f.csv", b"PK\x03\x04" + bytes(100))
    assert "Excel" in caught.value.hint


def test_weights_of_messages(tmp_path: Path) -> None:
    row = '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": %d}]}\n'
    null = row.replace('"q"', '"q2", "weight": null')  # as a column of Parquet has it where a message has none
    texts, ingestion = ingest(tmp_path / "f.jsonl", (row % 1 + row % 0 + null % 1).encode(), text="")
    assert texts == ["a", "a"]
    assert "weight that is not 1" in ingestion.rejected[0].reason
