"""Workbooks: the rows that the sheet as CSV would give; a hostile one is refused without a quote."""

from __future__ import annotations

import datetime as dt
import importlib.util
import io
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from appliance.errors import ApplianceError, ArtefactMissing, DataInvalid, UsageError, WillNotFit
from appliance.flows.data.describe import describe
from appliance.flows.data.sources import spec_for
from appliance.ingest import sheets, source
from appliance.ingest.ingestion import Ingestion
from appliance.ingest.sheets import read_sheet
from appliance.ingest.source import BadRow, Row

TOKEN = "Zyzzyva7731"
HEAD = ("question", "answer")
SHEET = "xl/worksheets/sheet1.xml"
MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
STRINGS = "application/vnd.openxmlformats-officedocument.spreadsheetml.sharedStrings+xml"
STRINGS_TYPE = f'<Override PartName="/xl/sharedStrings.xml" ContentType="{STRINGS}"/>'


def workbook(*rows: tuple[Any, ...], **others: list[tuple[Any, ...]]) -> bytes:
    book = openpyxl.Workbook()
    for title, cells in {"Notes": rows, **others}.items():
        sheet = book.active if title == "Notes" else book.create_sheet(title)
        sheet.title = title
        for row in cells:
            sheet.append(row)
    sink = io.BytesIO()
    book.save(sink)
    return share(sink.getvalue())


def share(content: bytes) -> bytes:
    """Put the texts of the first sheet where Excel has them; openpyxl leaves them in their cells."""
    texts: list[str] = []

    def number(match: re.Match[str]) -> str:
        texts.append(match[2])
        return f'<c{match[1]} t="s"><v>{len(texts) - 1}</v></c>'

    content = rewrite(content, SHEET, lambda text: re.sub(r'<c([^>]*) t="inlineStr"><is>(.*?)</is></c>', number, text))
    content = rewrite(content, "[Content_Types].xml", lambda text: text.replace("</Types>", f"{STRINGS_TYPE}</Types>"))
    sink = io.BytesIO(content)
    with zipfile.ZipFile(sink, "a", zipfile.ZIP_DEFLATED) as book:
        items = "".join(f"<si>{text}</si>" for text in texts)
        book.writestr("xl/sharedStrings.xml", f'<?xml version="1.0"?><sst xmlns="{MAIN}">{items}</sst>')
    return sink.getvalue()


def rewrite(content: bytes, name: str, change: Callable[[str], str]) -> bytes:
    """Change the text of one member of a workbook."""
    sink = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.namelist():
            data = old.read(member)
            new.writestr(member, change(data.decode()).encode() if member == name else data)
    return sink.getvalue()


def read(path: Path, content: bytes, sheet: str = "", limit: int = 1 << 20) -> list[Row | BadRow]:
    path.write_bytes(content)
    return list(read_sheet(path, sheet, limit, ()))


def test_cells_become_what_a_person_sees(tmp_path: Path) -> None:
    row = {
        "text": "é\nü", "whole": 7, "number": 1.5, "truth": True, "day": dt.date(2024, 2, 29),
        "moment": dt.datetime.fromisoformat("2024-02-29T12:30"), "midnight": dt.datetime.fromisoformat("2024-02-29"),
        "time": dt.time(8, 5), "text of digits": "007", "blank": None,
    }  # fmt: skip
    (found,) = read(tmp_path / "f.xlsx", workbook(tuple(row), tuple(row.values())))
    assert isinstance(found, Row)
    assert (found.line, found.offset) == (2, None)
    assert found.fields == {
        **row,
        "day": "2024-02-29",
        "moment": "2024-02-29T12:30:00",
        "midnight": "2024-02-29T00:00:00",
        "time": "08:05:00",
    }


def test_it_is_the_same_data_as_csv(tmp_path: Path) -> None:
    rows = [(f"what of {n}?", f"the answer to it is {n}") for n in range(300)]
    (tmp_path / "a.xlsx").write_bytes(workbook(HEAD, *rows))
    (tmp_path / "b.csv").write_text("\n".join(map(",".join, [HEAD, *rows])))
    prints = []
    for name in ("a.xlsx", "b.csv"):
        spec = spec_for([tmp_path / name], "auto", prompt="question", completion="answer")
        ingestion = Ingestion([tmp_path / name], spec, b"k" * 32)
        assert len(list(ingestion)) == 300
        prints.append(ingestion.fingerprints)
    assert prints[0] == prints[1]


def test_the_sheet_is_the_first_or_the_one_that_is_named(tmp_path: Path) -> None:
    content = workbook(HEAD, ("a", "b"), Second=[HEAD, ("c", "d")])
    for name, answer in (("", "b"), ("Notes", "b"), ("Second", "d")):
        (row,) = read(tmp_path / "f.xlsx", content, name)
        assert isinstance(row, Row)
        assert row.fields["answer"] == answer
        said = describe([tmp_path / "f.xlsx"], spec_for([tmp_path / "f.xlsx"], "auto", text="answer", sheet=name))
        assert said == [f"{tmp_path / 'f.xlsx'}: sheet '{name or 'Notes'}'; 1 other is left out"]
    with pytest.raises(UsageError, match="no sheet of that name"):
        read(tmp_path / "f.xlsx", content, "Third")
    with pytest.raises(UsageError, match="--sheet is said for workbooks"):
        spec_for([tmp_path / "f.csv"], "auto", text="answer", sheet="Notes")


def test_a_hidden_sheet_is_read_only_where_it_is_named(tmp_path: Path) -> None:
    book = openpyxl.load_workbook(io.BytesIO(workbook(HEAD, ("old", "a"), Second=[HEAD, ("new", "b")])))
    book["Notes"].sheet_state = "hidden"
    book.active = book["Second"]
    book.save(tmp_path / "g.xlsx")
    content = (tmp_path / "g.xlsx").read_bytes()
    for name, answer in (("", "b"), ("Notes", "a")):
        (row,) = read(tmp_path / "f.xlsx", content, name)
        assert isinstance(row, Row)
        assert row.fields["answer"] == answer


def test_what_xml_does_not_hold_is_written_out(tmp_path: Path) -> None:
    """Excel saves the end of a line from Windows as `_x000D_`."""
    (row,) = read(tmp_path / "f.xlsx", workbook(HEAD, ("one_x000D_\ntwo", "_xD800_ _x12_")))
    assert isinstance(row, Row)
    assert row.fields == {"question": "one\r\ntwo", "answer": "_xD800_ _x12_"}


def test_blank_rows_short_rows_and_a_title_less_column(tmp_path: Path) -> None:
    rows: list[tuple[Any, ...]] = [
        (),
        (None, None),
        ("a", None, "c"),
        (1, 2, 3),
        (),
        ("", None),
        (4,),
        (5, 6, 7, 8),
        ("a", None, "c"),
    ]
    first, short, long, again = read(tmp_path / "f.xlsx", workbook(*rows))
    assert isinstance(first, Row)
    assert (first.line, first.fields) == (4, {"a": 1, "#2": 2, "c": 3})
    assert isinstance(short, Row)
    assert short.fields == {"a": 4, "#2": None, "c": None}
    assert isinstance(long, BadRow)
    assert long.reason == "has 4 columns, the header has 3"
    assert isinstance(again, BadRow)
    assert "repeats the header" in again.reason


def test_formulas_give_the_value_that_was_saved_and_errors_none(tmp_path: Path) -> None:
    content = workbook(HEAD, ("=1+1", "=1+1"), ("a", "#N/A"))
    cached = rewrite(
        content, SHEET, lambda text: text.replace("<v></v>", "<v>2</v>", 1).replace("<v />", "<v>2</v>", 1)
    )
    first, second = read(tmp_path / "f.xlsx", cached)
    assert isinstance(first, Row)
    assert isinstance(second, Row)
    assert first.fields == {"question": 2, "answer": None}
    assert second.fields == {"question": "a", "answer": None}


def test_a_huge_cell_costs_its_row_alone(tmp_path: Path) -> None:
    first, second, third = read(tmp_path / "f.xlsx", workbook(HEAD, (1, "a"), (2, TOKEN * 1000), (3, "b")), limit=5000)
    assert isinstance(second, BadRow)
    assert (second.line, second.reason) == (3, "longer than 5000 bytes")
    assert isinstance(first, Row)
    assert isinstance(third, Row)


def test_columns_that_are_missing_are_named_and_the_header_is_not(tmp_path: Path) -> None:
    (tmp_path / "f.xlsx").write_bytes(workbook((TOKEN, "answer"), ("a", "b")))
    with pytest.raises(DataInvalid, match="no column 'question'") as caught:
        list(read_sheet(tmp_path / "f.xlsx", "", 1 << 20, ("question",)))
    assert "--sheet" in caught.value.hint
    assert TOKEN not in str(caught.value) + caught.value.hint


WHOLE = workbook(HEAD, *((f"{TOKEN} {n * n % 997}", n) for n in range(200)))
DAMAGED: dict[str, bytes] = {
    "empty": b"",
    "JSON": b"{}",
    "an old workbook": b"\xd0\xcf\x11\xe0" + bytes(600),
    "cut off": WHOLE[: len(WHOLE) // 2],
    "without its end": WHOLE[:-10],
    "a zip of something else": rewrite(WHOLE, "[Content_Types].xml", lambda text: "<x/>"),
    "no XML": rewrite(WHOLE, SHEET, lambda text: text[: len(text) // 2]),
    "a shared text that is not there": rewrite(WHOLE, SHEET, lambda text: text.replace("<v>0</v>", "<v>99999</v>")),
    "a number that is none": rewrite(WHOLE, SHEET, lambda text: text.replace("<v>1</v>", f"<v>{TOKEN}</v>")),
    "a place that is none": rewrite(WHOLE, SHEET, lambda text: text.replace('r="B2"', f'r="{TOKEN}"')),
    "no sheets": rewrite(WHOLE, "xl/workbook.xml", lambda text: re.sub(r"<sheets>.*</sheets>", "<sheets/>", text)),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_no_workbook_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataInvalid, match="damaged") as caught:
        read(tmp_path / "f.xlsx", DAMAGED[name])
    assert TOKEN not in str(caught.value) + caught.value.hint
    assert caught.value.__cause__ is None


def test_a_flipped_byte_is_an_error_or_a_row_and_never_a_traceback(tmp_path: Path) -> None:
    refused = 0
    for at in range(0, len(WHOLE), len(WHOLE) // 60):
        try:
            read(tmp_path / "f.xlsx", WHOLE[:at] + bytes([WHOLE[at] ^ 0x41]) + WHOLE[at + 1 :])
        except ApplianceError as error:
            refused += 1
            assert TOKEN not in str(error) + error.hint  # noqa: PT017
    assert refused > 20


def bomb(member: str, head: bytes, unit: bytes) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(WHOLE)) as old, zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as book:
        for name in set(old.namelist()) - {member}:
            book.writestr(name, old.read(name))
        with book.open(member, "w") as file:
            file.write(head)
            for _ in range(128):
                file.write(unit * ((1 << 20) // len(unit)))
    return sink.getvalue()


@pytest.mark.parametrize("member", ["xl/worksheets/sheet9.xml", "docProps/thumbnail.jpeg"])
def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, member: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bomb(member, b"", b" ")
    monkeypatch.setattr(zipfile.ZipExtFile, "read", lambda *args: pytest.fail("unpacked"))
    with pytest.raises(WillNotFit, match="unpack to far more"):
        read(tmp_path / "f.xlsx", content)


def test_a_bomb_that_lies_of_its_size_gives_no_more_than_it_says(tmp_path: Path) -> None:
    """The size in the directory is the most that is unpacked; then the sum is wrong."""
    head = f'<sst xmlns="{MAIN}">'.encode()
    content = bomb("xl/sharedStrings.xml", head, b"<si><t>a</t></si>")
    real = (128 * ((1 << 20) // 17) * 17 + len(head)).to_bytes(4, "little")
    assert real in content
    small = content.replace(real, (1 << 20).to_bytes(4, "little"))
    with pytest.raises(DataInvalid, match="damaged"):
        read(tmp_path / "f.xlsx", small)


def test_thousands_of_members_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheets, "_MEMBERS", 5)
    with pytest.raises(WillNotFit):
        read(tmp_path / "f.xlsx", WHOLE)


LAUGHS = "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefghi", "bcdefghij", strict=True))


@pytest.mark.parametrize("member", [SHEET, "xl/sharedStrings.xml", "xl/workbook.xml"])
@pytest.mark.parametrize(
    "declared", [f'<!ENTITY a "ha">{LAUGHS}', '<!ENTITY j SYSTEM "file:///etc/passwd">'], ids=["laughs", "outside"]
)
def test_entities_are_not_resolved(tmp_path: Path, member: str, declared: str) -> None:
    def plant(text: str) -> str:
        text = re.sub(r"<\?xml[^>]*\?>", "", text)
        root = re.match(r"\s*<(\w+)", text)
        assert root is not None
        marked = re.sub(r"(<t[^>]*>)|(<v>)|(<sheets>)", lambda match: match[0] + "&j;", text, count=1)
        return f"<!DOCTYPE {root[1]} [{declared}]>{marked}"

    with pytest.raises(DataInvalid, match="damaged"):
        read(tmp_path / "f.xlsx", rewrite(WHOLE, member, plant))


def test_a_row_far_below_ends_the_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheets, "_ROWS", 1000)
    far = rewrite(workbook(HEAD, ("a", "b")), SHEET, lambda text: text.replace('<row r="2"', '<row r="99999999999"'))
    with pytest.raises(DataInvalid, match="more than 1000 rows"):
        read(tmp_path / "f.xlsx", far)


def test_a_workbook_that_takes_far_longer_than_its_size_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "_SECONDS_FREE", 0.0)
    monkeypatch.setattr(source, "_SLOWEST", 1 << 40)
    with pytest.raises(WillNotFit, match="reading took longer"):
        read(tmp_path / "f.xlsx", WHOLE)


def test_without_openpyxl_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f.xlsx").write_bytes(WHOLE)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ArtefactMissing, match="openpyxl") as caught:
        Ingestion([tmp_path / "f.xlsx"], spec_for([tmp_path / "f.xlsx"], "auto", text="answer"), b"k" * 32)
    assert "appliance[xlsx]" in caught.value.hint
    assert describe([tmp_path / "f.xlsx"], spec_for([tmp_path / "f.xlsx"], "auto", text="answer")) == []
