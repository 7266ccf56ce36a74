"""Whatever is written is read back equal, from the place where it starts; whatever else comes never escapes."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import DataInvalid
from appliance.ingest.ingestion import Ingestion
from appliance.ingest.keyset import KeySet
from appliance.ingest.reading import read_rows
from appliance.ingest.source import BadRow, Row
from appliance.ingest.spec import IngestSpec
from appliance.jobs.plan import UnitOfPrivacy

CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0") | st.sampled_from('",\t\r\n\u2028\ufeff')
TEXTS = st.text(CHARACTERS, max_size=30)
NAMES = st.lists(
    TEXTS.filter(lambda name: name and name[0] not in "#\ufeff" and name == name.strip("\ufeff").strip()),
    min_size=2, max_size=4, unique=True,
)  # fmt: skip
"""Names of columns: without blanks around them, which are not taken for a part of the name."""
COUNT = Callable[[int, int], int]


@st.composite
def tables(draw: Callable[..., Any]) -> tuple[list[str], list[list[str]]]:
    names = draw(NAMES)
    rows = st.lists(TEXTS, min_size=len(names), max_size=len(names)).filter(lambda row: row != names)
    return names, draw(st.lists(rows, max_size=12))


def read(path: Path, data: bytes, file_format: Any, compressed: bool = False) -> list[Row | BadRow]:
    path.write_bytes(gzip.compress(data) if compressed else data)
    delimiter = {"csv": ","}.get(file_format, "")  # which of several it is, is guessed by the names
    return list(read_rows(path, IngestSpec(format=file_format, delimiter=delimiter)))


@pytest.mark.parametrize("file_format", ["csv", "tsv"])
def test_csv_comes_back_equal(tmp_path: Path, file_format: str, stress_count: COUNT) -> None:
    @settings(max_examples=stress_count(100, 3000), deadline=None)
    @given(tables(), st.sampled_from(["\n", "\r\n"]), st.booleans(), st.booleans(), st.booleans())
    def check(table: tuple[list[str], list[list[str]]], end: str, mark: bool, all_quoted: bool, packed: bool) -> None:
        # With bare line feeds, this version of csv leaves a carriage return unquoted, which is not valid CSV.
        quoting = csv.QUOTE_ALL if all_quoted or end == "\n" else csv.QUOTE_MINIMAL
        names, rows = table
        data, starts = b"\xef\xbb\xbf" if mark else b"", []
        for values in [names, *rows]:
            buffer = io.StringIO(newline="")
            delimiter = "," if file_format == "csv" else "\t"
            csv.writer(buffer, delimiter=delimiter, lineterminator=end, quoting=quoting).writerow(values)
            starts.append((data.count(b"\n") + 1, len(data)))
            data += buffer.getvalue().encode()
        found = read(tmp_path / "f", data, file_format, packed)
        assert all(isinstance(row, Row) for row in found)
        assert [list(row.fields.items()) for row in found] == [list(zip(names, r, strict=True)) for r in rows]
        assert [(row.line, row.offset) for row in found] == starts[1:]

    check()


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


def test_jsonl_comes_back_equal(tmp_path: Path, stress_count: COUNT) -> None:
    @settings(max_examples=stress_count(150, 5000), deadline=None)
    @given(
        st.lists(st.dictionaries(TEXTS, VALUES, max_size=4), max_size=6), st.booleans(), st.booleans(), st.booleans()
    )
    def check(rows: list[dict[str, Any]], escape: bool, last_line_ends: bool, packed: bool) -> None:
        data, starts = b"", []
        for number, row in enumerate(rows, 1):
            starts.append((number, len(data)))
            data += json.dumps(row, ensure_ascii=escape).encode() + b"\n"
        found = read(tmp_path / "f", data if last_line_ends else data.rstrip(b"\n"), "jsonl", packed)
        assert found == [Row(line, offset, row) for (line, offset), row in zip(starts, rows, strict=True)]

    check()


def test_a_key_twice_is_always_found(tmp_path: Path, stress_count: COUNT) -> None:
    def written(key: str, escape: bool) -> str:
        return '"' + "".join(f"\\u{ord(c):04x}" for c in key) + '"' if escape else json.dumps(key, ensure_ascii=False)

    keys = st.text(st.characters(min_codepoint=1, max_codepoint=0xD7FF), max_size=4)

    @settings(max_examples=stress_count(150, 5000), deadline=None)
    @given(keys, keys, st.booleans(), st.booleans(), st.booleans())
    def check(key: str, other: str, first: bool, second: bool, nested: bool) -> None:
        line = f"{{{written(key, first)}: 1, {written('x' + other, False)}: [], {written(key, second)}: 2}}"
        line = f'{{"a": [{line}]}}' if nested else line
        (row,) = read(tmp_path / "f", line.encode(), "jsonl")
        if key != "x" + other:
            assert isinstance(row, BadRow)
            assert "twice" in row.reason

    check()


def test_text_lines_come_back_equal(tmp_path: Path, stress_count: COUNT) -> None:
    lines = st.lists(st.text(CHARACTERS, min_size=1).filter(lambda t: not re.search(r"[\r\n]", t)), max_size=8)

    @settings(max_examples=stress_count(60, 3000), deadline=None)
    @given(lines.filter(lambda found: not found or not found[0].startswith("\ufeff")))
    def check(texts: list[str]) -> None:
        (tmp_path / "f").write_bytes("".join(f"{text}\n" for text in texts).encode())
        found = list(read_rows(tmp_path / "f", IngestSpec(format="text", unit=UnitOfPrivacy(split="line"))))
        assert [row.fields["text"] for row in found if isinstance(row, Row)] == [
            text for text in texts if not text.encode().isspace()
        ]

    check()


@pytest.mark.parametrize("file_format", ["jsonl", "csv", "tsv", "text"])
def test_no_bytes_make_it_fail_otherwise(tmp_path: Path, file_format: Any, stress_count: COUNT) -> None:
    pieces = [
        b'"',
        b",",
        b"\n",
        b"\r",
        b"\0",
        b"\xff",
        b"\\",
        b"{",
        b"}",
        b'"text"',
        b":",
        b"text",
        b"a",
        b"\xef\xbb\xbf",
    ]
    data = st.lists(st.sampled_from(pieces) | st.binary(max_size=3), max_size=40).map(b"".join)

    @settings(max_examples=stress_count(150, 4000), deadline=None)
    @given(data, st.integers(1, 60))
    def check(noise: bytes, limit: int) -> None:
        file = tmp_path / "f"
        file.write_bytes(noise)
        ingestion = Ingestion([file], IngestSpec(format=file_format, max_row_bytes=limit, text=None), b"k" * 32)
        try:
            records = list(ingestion)
        except DataInvalid:
            records = []
        assert len(records) == ingestion.records.reveal()
        assert all(0 <= bad.offset <= len(noise) and bad.line >= 1 for bad in ingestion.rejected)

    check()


def test_key_set_is_a_set(stress_count: COUNT) -> None:
    # Few low bits, so that many keys want the same slot.
    keys = st.builds(
        lambda a, b: a.to_bytes(8, "little") + b.to_bytes(8, "little"), st.integers(0, 3000), st.integers(0, 3)
    )

    @settings(max_examples=stress_count(60, 3000), deadline=None)
    @given(st.lists(st.lists(keys, max_size=60), max_size=5))
    def check(batches: list[list[bytes]]) -> None:
        mine, known = KeySet(), set()
        for batch in batches:
            expected = []
            for key in batch:
                # A key whose first half is zero is kept as if that half were one.
                key = key if any(key[:8]) else b"\1" + key[1:]
                expected.append(key not in known)
                known.add(key)
            assert mine.add(b"".join(batch)) == expected
            assert len(mine) == len(known)

    check()


def test_key_set_grows() -> None:
    mine = KeySet()
    spread = [hashlib.sha256(b"%d" % n).digest()[:16] for n in range(20_000)]
    for start in range(0, len(spread), 1000):
        assert all(mine.add(b"".join(spread[start : start + 1000])))
    assert not any(mine.add(b"".join(spread)))
    assert len(mine) == 20_000
