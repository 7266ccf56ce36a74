"""The fault matrix of foreign files: each fault is refused by place and reason, nothing around it is lost, and
neither a reason nor an error quotes what the file holds."""

from __future__ import annotations

import gzip
import json
import os
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import ApplianceError, ArtefactMissing, DataInvalid, WillNotFit
from appliance.ingest import jsonl, source
from appliance.ingest.ingestion import MAX_LISTED, Ingestion
from appliance.ingest.source import lines
from appliance.ingest.spec import IngestSpec
from appliance.jobs.plan import UnitOfPrivacy

TOKEN = "Zyzzyva7731"
KEY = b"k" * 32
GOOD = b'{"text": "good"}\n'

BAD_JSON: dict[str, tuple[bytes, str]] = {
    "cut off": (b'{"text": "%s', "not valid JSON"),
    "no JSON": (b"%s", "not valid JSON"),
    "NaN": (b'{"text": "%s", "n": NaN}', "not valid JSON"),
    "infinite": (b'{"text": "%s", "n": 1e999}', "not valid JSON"),
    "half a surrogate pair": (b'{"text": "%s\\ud800"}', "not valid JSON"),
    "second half first": (b'{"text": "%s\\udc00\\ud800"}', "not valid JSON"),
    "encoded surrogate": (b'{"text": "%s\xed\xa0\x80"}', "not valid JSON"),
    "not UTF-8": (b'{"text": "%s\xff"}', "not valid JSON"),
    "raw NUL": (b'{"text": "%s\x00"}', "not valid JSON"),
    "escaped NUL": (b'{"text": "%s\\u0000"}', "NUL"),
    "array": (b'["%s"]', "not a JSON object"),
    "number": (b"7", "not a JSON object"),
    "depth bomb of lists": (b'{"text": "%s", "a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not valid JSON"),
    "depth bomb of objects": (b'{"a":' * 1000 + b"1" + b"}" * 1000, "neither messages"),
    "deep with an escape": (b'{"\\u0061":' * 1000 + b"1" + b"}" * 1000, "too deeply"),
    "duplicate key": (b'{"text": "a", "text": "%s"}', "twice"),
    "duplicate key, spaced": (b'{"text" : "a", "text"\t: "%s"}', "twice"),
    "duplicate key, escaped": (b'{"text": "a", "t\\u0065xt": "%s"}', "twice"),
    "duplicate key with a slash": (b'{"text": "a", "b/c": 1, "b\\/c": "%s"}', "twice"),
    "duplicate key inside": (b'{"text": "a", "x": [{"k": 1, "k": "%s"}]}', "twice"),
    "duplicate empty key": (b'{"text": "a", "": 1, "": "%s"}', "twice"),
    "two objects on a line": (b'{"text": "a"} {"text": "%s"}', "not valid JSON"),
    "mark in the middle": (b'\xef\xbb\xbf{"text": "%s"}', "not valid JSON"),
    "carriage return only": (b'{"text": "a"}\r{"text": "%s"}', "not valid JSON"),
    "empty": (b'{"text": "", "x": "%s"}', "empty"),
    "blank": (b'{"text": " \\n\\t", "x": "%s"}', "empty"),
    "null": (b'{"text": null, "x": "%s"}', "missing or null"),
    "list as text": (b'{"text": ["%s"]}', "neither text nor a number"),
    "huge number": (b'{"text": 123456789012345678901234567890, "x": "%s"}', "too large"),
    "other columns": (b'{"%s": "a"}', "has neither"),
    "messages is a text": (b'{"messages": "%s"}', "not a list"),
    "no messages": (b'{"messages": []}', "not a list"),
    "message is a text": (b'{"messages": ["%s"]}', "message 1 is not an object"),
    "unknown role": (b'{"messages": [{"role": "%s", "content": "a"}]}', "message 1 has a role"),
    "role is a list": (b'{"messages": [{"role": ["%s"], "content": "a"}]}', "message 1 has a role"),
    "content is a list": (b'{"messages": [{"role": "user", "content": ["%s"]}]}', "message 1 has no text"),
    "tool call": (b'{"messages": [{"role": "user", "content": "a", "tool_calls": ["%s"]}]}', "more than a role"),
    "nobody answers": (b'{"messages": [{"role": "user", "content": "%s"}]}', "nothing to learn"),
    "too long": (b'{"text": "%s' + b"x" * 300_000 + b'"}', "longer than 250000 bytes"),
}


def run(path: Path, **spec: Any) -> tuple[list[str], Ingestion]:
    ingestion = Ingestion([path], IngestSpec(**{"format": "jsonl", "max_row_bytes": 250_000, **spec}), KEY)
    return [record.parts[-1][1] for record in ingestion], ingestion


@pytest.mark.parametrize("name", BAD_JSON)
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_bad_json_lines(tmp_path: Path, name: str, end: bytes) -> None:
    template, reason = BAD_JSON[name]
    bad = template.replace(b"%s", TOKEN.encode())
    file = tmp_path / "f"
    before = b"\xef\xbb\xbf" + GOOD.replace(b"\n", end) + end
    file.write_bytes(before + bad + end + b'{"text": "last"}')
    texts, ingestion = run(file)
    assert texts == ["good", "last"]
    (row,) = ingestion.rejected
    assert (row.file, row.line, row.offset) == (str(file), 3, len(before))
    assert reason in row.reason
    assert TOKEN not in str(row) + repr(row)

    file.write_bytes(b" " + bad)
    with pytest.raises(DataInvalid) as caught:
        run(file)
    assert "line 1 (byte 0)" in caught.value.hint
    assert "line" not in caught.value.message, "the message goes into the ledger; a place in private data does not"
    assert TOKEN not in str(caught.value) + caught.value.hint


def test_without_the_check_a_repeated_key_would_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "_may_repeat", lambda line, value: False)
    file = tmp_path / "f"
    file.write_bytes(b'{"text": "a", "text": "b"}\n')
    assert run(file)[0] == ["b"]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("again", [b"", b', "k7": 0'])
def test_a_line_of_a_hundred_thousand_keys_takes_no_minutes(tmp_path: Path, again: bytes) -> None:
    """Each key was looked for in the whole line: two minutes for a megabyte."""
    keys = b", ".join(b'"k%d": %d' % (n, n) for n in range(100_000))
    (tmp_path / "f").write_bytes(b'{"text": "a", ' + keys + again + b"}\n" + GOOD)
    texts, ingestion = run(tmp_path / "f", max_row_bytes=4 << 20)
    assert texts == (["good"] if again else ["a", "good"])
    assert [bad.reason for bad in ingestion.rejected] == (["a key stands twice in one object"] if again else [])


def test_keys_that_only_look_repeated_are_kept(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"text": 'he said "text": and "text" again'},
        {"text": "text", "x": {"text": "text", "y": [{"text": 1}, {"text": 2}]}},
        {"text": "1", "\u00e9/\\": 1, "\u00e9\\/": 2},
        {"text": "2", "tex": 1, '"text"': 2},
    ]
    file = tmp_path / "f"
    for escape in (True, False):
        file.write_text("".join(json.dumps(row, ensure_ascii=escape) + "\n" for row in rows))
        texts, ingestion = run(file)
        assert texts == [row["text"] for row in rows]
        assert ingestion.rejected == []


HEADER = b"who,text\n"
BAD_CSV: dict[str, tuple[bytes, str]] = {
    "unclosed quote": (b'1,"%s\n', "a quote is not closed"),
    "text after a quote": (b'1,"%s"x\n', "follows a closing one"),
    "too few columns": (b"%s\n", "has 1 columns, the header has 2"),
    "too many columns": (b"1,2,%s\n", "has 3 columns"),
    "a million columns": (b"%s" + b"," * 200_000 + b"\n", "has 200001 columns"),
    "no encoding": (b"1,%s\x81\n", "neither UTF-8 nor Windows-1252"),
    "NUL": (b"1,%s\x00\n", "NUL"),
    "carriage return inside": (b"1,%s\rx\n", "line break outside"),
    "too long": (b"1,%s" + b"x" * 300_000 + b"\n", "longer than 250000 bytes"),
    "empty": (b"%s,\n", "empty"),
}


@pytest.mark.parametrize("name", BAD_CSV)
def test_bad_csv_rows(tmp_path: Path, name: str) -> None:
    template, reason = BAD_CSV[name]
    file = tmp_path / "f.csv"
    before = HEADER + b'1,"two\nlines"\n\n'
    file.write_bytes(before + template.replace(b"%s", TOKEN.encode()) + b'2,"a ""quoted"" one"\r\n3,last')
    texts, ingestion = run(file, format="csv", text="text")
    assert texts == ["two\nlines", 'a "quoted" one', "last"]
    (row,) = ingestion.rejected
    assert (row.line, row.offset) == (5, len(before))
    assert reason in row.reason
    assert TOKEN not in str(row)


def test_an_unclosed_quote_costs_one_line_wherever_it_stands(tmp_path: Path) -> None:
    rows = [b"%d,row number %d\n" % (n, n) for n in range(30_000)]
    for at in (0, 15_000, 29_999):
        broken = [*rows]
        broken[at] = b'%d,"row number %d\n' % (at, at)
        file = tmp_path / "f.csv"
        file.write_bytes(HEADER + b"".join(broken))
        texts, ingestion = run(file, format="csv", text="text")
        assert len(texts) == 29_999
        assert [bad.line for bad in ingestion.rejected] == [at + 2]


def test_many_unclosed_quotes_are_not_quadratic(tmp_path: Path) -> None:
    file = tmp_path / "f.csv"
    file.write_bytes(HEADER + (b'1,"x\n' + b"1,2\n" * 3) * 20_000)
    texts, ingestion = run(file, format="csv", text="text")
    assert len(texts) + ingestion.rejected_count.reveal() > 0
    assert len(ingestion.rejected) <= MAX_LISTED


def test_formula_cells_are_kept_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "f.csv"
    file.write_bytes(HEADER + b"1,=cmd|' /C calc'!A0\n2,+1\n3,@x\n")
    assert run(file, format="csv", text="text")[0] == ["=cmd|' /C calc'!A0", "+1", "@x"]


BAD_HEADER: dict[str, tuple[bytes, str]] = {
    "a record instead": (b"1,%s\n2,x\n", "no column 'text'"),
    "same name twice": (b"text,text,%s\na,b,c\n", "same name"),
    "unclosed": (b'"text,%s\nb\n', "header cannot be read"),
    "no encoding": (b"text,%s\x81\nb\n", "header cannot be read"),
    "too many columns": (b",".join(b"c%d" % n for n in range(5000)) + b"%s\n", "more than 4096 columns"),
    "one long line": (b"text,%s" + b"x" * 300_000, "header cannot be read"),
}


@pytest.mark.parametrize("name", BAD_HEADER)
def test_bad_headers_are_not_quoted(tmp_path: Path, name: str) -> None:
    template, message = BAD_HEADER[name]
    file = tmp_path / "f.csv"
    file.write_bytes(template.replace(b"%s", TOKEN.encode()))
    with pytest.raises(DataInvalid) as caught:
        run(file, format="csv", text="text")
    assert message in caught.value.message
    assert caught.value.where == f"{file}:1"
    assert TOKEN not in str(caught.value) + caught.value.hint


@pytest.mark.parametrize("split", ["line", "paragraph", "file"])
def test_bad_text(tmp_path: Path, split: str) -> None:
    file = tmp_path / "f.txt"
    file.write_bytes(b"first\n\nbad \xff\n\nbad \x00\n\n" + b"x" * 300_000 + b"\n\nlast\n")
    if split == "file":
        with pytest.raises(DataInvalid) as caught:
            run(file, format="text", unit=UnitOfPrivacy(split=split))
        assert "longer than 250000 bytes" in caught.value.hint
        return
    texts, ingestion = run(file, format="text", unit=UnitOfPrivacy(split=split))
    assert texts == ["first", "last"]
    assert [bad.line for bad in ingestion.rejected] == [3, 5, 7]


FOREIGN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "no rows"),
    "only a mark": (b"\xef\xbb\xbf", "no rows"),
    "only blank lines": (b"\n \r\n\n", "no rows"),
    "UTF-16": (GOOD.decode().encode("utf-16"), "UTF-16"),
    "zip": (b"PK\x03\x04....", "zip archive"),
    "zstd": (b"\x28\xb5\x2f\xfd....", "zstd"),
    "Parquet": (b"PAR1....", "Parquet"),
    "bzip2": (b"BZh91AY&SY", "bzip2"),
    "xz": (b"\xfd7zXZ\0\0", "xz file"),
    "7z": (b"7z\xbc\xaf\x27\x1c", "7z archive"),
    "rich text": (rb"{\rtf1\ansi Hello}", "rich text"),
    "SQLite": (b"SQLite format 3\0", "SQLite"),
    "gzip without a body": (b"\x1f\x8b", "damaged"),
    "gzip cut off": (gzip.compress(GOOD * 1000)[:-20], "damaged"),
    "gzip with a wrong sum": (gzip.compress(GOOD)[:-8] + b"12345678", "damaged"),
    "gzip with a flipped byte": (gzip.compress(GOOD * 9)[:20] + b"\xff" + gzip.compress(GOOD * 9)[21:], "damaged"),
    "gzip with a tail": (gzip.compress(GOOD) + b"tail", "damaged"),
    "gzip of nothing": (gzip.compress(b""), "no rows"),
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("file_format", ["jsonl", "csv", "text"])
def test_files_that_are_something_else(tmp_path: Path, name: str, file_format: str) -> None:
    data, message = FOREIGN[name]
    file = tmp_path / "f"
    file.write_bytes(data)
    with pytest.raises(DataInvalid) as caught:
        run(file, format=file_format)
    assert message in caught.value.message or message == "no rows"
    assert str(file) in caught.value.where


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_link(path: Path) -> None:
    path.with_name("target").write_bytes(GOOD)
    path.symlink_to("target")


def make_loop(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize("make", [make_fifo, make_link, make_loop, Path.mkdir])
def test_what_is_not_a_regular_file_is_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    file = tmp_path / "f"
    make(file)
    with pytest.raises(DataInvalid) as caught:
        run(file)
    assert caught.value.where == str(file)


def test_devices_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(DataInvalid, match="regular file"):
        run(Path("/dev/zero"))
    for path in (tmp_path / "gone", tmp_path / "gone" / "deeper"):
        with pytest.raises(ArtefactMissing):
            run(path)
    with pytest.raises(ApplianceError):
        run(tmp_path / ("x" * 5000))


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("file_format", ["jsonl", "csv", "text"])
def test_a_line_without_end_is_read_in_bounded_memory(
    tmp_path: Path, file_format: str, compressed: bool, stress_count: Callable[[int, int], int]
) -> None:
    size = stress_count(64, 1024) << 20
    file = tmp_path / "f"
    head = {"jsonl": GOOD, "csv": HEADER + b"1,good\n", "text": b"good\n\n"}[file_format]
    tail = {"jsonl": b"\n" + GOOD.replace(b"good", b"last"), "csv": b"\n2,last", "text": b"\n\nlast"}[file_format]
    with gzip.open(file, "wb", 1) if compressed else file.open("wb") as stream:
        stream.write(head)
        for _ in range(size >> 20):
            stream.write(b"x" * (1 << 20))
        stream.write(tail)
    spec = {"format": file_format, "max_row_bytes": 1 << 20, "text": "text" if file_format == "csv" else None}
    if file_format == "text":
        spec["unit"] = UnitOfPrivacy(split="paragraph")
    tracemalloc.start()
    texts, ingestion = run(file, **spec)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert texts == ["good", "last"]
    assert len(ingestion.rejected) == 1
    assert peak < 12 << 20


@pytest.mark.parametrize("file_format", ["jsonl", "csv", "text"])
@pytest.mark.parametrize("unit", [b"\n", b"x\n", b"\r\n"], ids=["line feeds", "short lines", "carriage returns"])
def test_a_small_file_that_unpacks_to_hundreds_of_millions_of_lines_is_refused_soon(
    tmp_path: Path, file_format: str, unit: bytes
) -> None:
    file = tmp_path / "f.gz"
    block = gzip.compress(unit * (1 << 20))
    head = {"jsonl": GOOD, "csv": HEADER + b"1,good\n", "text": b"good\n\n"}[file_format]
    file.write_bytes(gzip.compress(head) + block * 200)  # a gzip file of many members is one file
    spec = {"format": file_format, "text": "text" if file_format == "csv" else None}
    began = time.process_time()
    with pytest.raises(DataInvalid) as caught:
        run(file, **spec)
    assert "more lines than a file of this size" in caught.value.message
    assert time.process_time() - began < 60


@pytest.mark.parametrize("inside", ["many lines", "one line"])
def test_a_file_that_takes_far_longer_than_its_size_is_given_up(
    tmp_path: Path, inside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "_SECONDS_FREE", 0.1)
    monkeypatch.setattr(source, "_SLOWEST", 1 << 40)
    block = (b"x\n" if inside == "many lines" else b"x" * 64) * (1 << 17)
    file = tmp_path / "f.gz"
    file.write_bytes(gzip.compress(GOOD) + gzip.compress(block) * 200)
    with pytest.raises(WillNotFit) as caught:
        list(lines(file, 100))
    assert "longer than the 0 s that a file of this size may take" in caught.value.message


def test_the_deadline_follows_the_size_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "f"
    with file.open("wb") as grown:
        grown.truncate(1 << 30)
    assert source.Bounds(file, file.stat().st_size)._seconds > 14 * 3600


def test_a_million_lines_that_are_alike_are_no_attack(tmp_path: Path) -> None:
    """As many rows as a log may have, which compress as well as rows can."""
    lines_ = sum(1 for _ in lines(_packed(tmp_path / "f.gz", b"x\n" * (1 << 20)), 100))
    assert lines_ == 1 << 20
    varied = b"".join(b"%d,%d\n" % (i, i * i % 9973) for i in range(3 << 20))
    assert sum(1 for _ in lines(_packed(tmp_path / "g.gz", varied), 100)) == 3 << 20


def _packed(path: Path, data: bytes) -> Path:
    path.write_bytes(gzip.compress(data))
    return path


def test_the_list_of_rejected_rows_is_bounded(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(GOOD + b"bad\n" * (MAX_LISTED + 5))
    _, ingestion = run(file)
    assert len(ingestion.rejected) == MAX_LISTED
    assert ingestion.rejected_count.reveal() == MAX_LISTED + 5


@pytest.mark.parametrize("who", ["null", '""', '"  "', "[]", "true", "1.5", "1e30"])
def test_rows_without_a_subject_are_refused(tmp_path: Path, who: str) -> None:
    file = tmp_path / "f"
    file.write_text(f'{{"who": 1, "text": "a"}}\n{{"who": {who}, "text": "b"}}\n{{"text": "c"}}\n')
    texts, ingestion = run(file, unit=UnitOfPrivacy(kind="subject", key="who", max_records=9))
    assert texts == ["a"]
    assert [bad.reason for bad in ingestion.rejected] == ["column 'who' names no subject"] * 2
