"""One JSON array: the rows that one object a line would give, with their places, in bounded memory."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import DataInvalid
from appliance.flows.data.sources import spec_for
from appliance.ingest import json_array, source
from appliance.ingest.ingestion import Ingestion
from appliance.ingest.json_array import read_json
from appliance.ingest.source import BadRow, Row

TOKEN = "Zyzzyva7731"
TRICKY = ['a "quoted" \\ one', "[{,}]", '\\\\"', "é\u2028ü", "tail\\", "", '{"text": "[1,2]"}', "line\nbreak"]


def read(path: Path, content: bytes, limit: int = 1 << 20) -> list[Row | BadRow]:
    path.write_bytes(content)
    return list(read_json(path, limit))


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("escape", [True, False])
@pytest.mark.parametrize("block", [1, 2, 7, 1 << 20])
def test_it_gives_what_the_array_holds(
    tmp_path: Path, indent: int | None, escape: bool, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(path: Path, rows: Callable[[], int]) -> Iterator[tuple[int, bytes]]:
        for offset, data in source.blocks(path, rows):
            yield from ((offset + at, data[at : at + block]) for at in range(0, len(data), block))

    monkeypatch.setattr(json_array, "blocks", cut)
    rows = [{"n": n, "text": text, "x": {"y": [text, {"z": [n, None]}]}} for n, text in enumerate(TRICKY * 3)]
    content = b"\xef\xbb\xbf" + json.dumps(rows, indent=indent, ensure_ascii=escape).encode() + b"\n"
    found = read(tmp_path / "f.json", content)
    assert [row.fields for row in found if isinstance(row, Row)] == rows
    for row in found:
        assert content[row.offset or 0 :].startswith(b"{")
        assert content[: row.offset].count(b"\n") == row.line - 1


def test_a_json_file_of_lines_is_read_too(tmp_path: Path) -> None:
    found = read(tmp_path / "f.json", b'\n{"text": "a"}\n{"text": "b"}\n')
    assert [(row.line, row.fields) for row in found if isinstance(row, Row)] == [(2, {"text": "a"}), (3, {"text": "b"})]


def test_it_is_the_same_data_as_lines(tmp_path: Path) -> None:
    rows = [{"text": f"row {n} of a list that is long enough", "n": n} for n in range(50)]
    prints = []
    for name, content in (("a.json", json.dumps(rows)), ("b.jsonl", "\n".join(map(json.dumps, rows)))):
        (tmp_path / name).write_text(content)
        ingestion = Ingestion([tmp_path / name], spec_for([tmp_path / name], "auto"), b"k" * 32)
        assert len(list(ingestion)) == 50
        prints.append(ingestion.fingerprints)
    assert prints[0] == prints[1]


BAD: dict[str, tuple[bytes, str]] = {
    "not an object": (b'"%s"', "not a JSON object"),
    "an array": (b'["%s", {}]', "not a JSON object"),
    "NaN": (b'{"text": "%s", "n": NaN}', "not valid JSON"),
    "duplicate key": (b'{"text": "a", "text": "%s"}', "twice"),
    "not UTF-8": (b'{"text": "%s\xff"}', "not valid JSON"),
    "wrong bracket": (b'{"text": ["%s"}}', "not valid JSON"),
    "nothing": (b" ", "not valid JSON"),
    "two without a comma": (b'{"text": "%s"} {}', "not valid JSON"),
    "depth bomb": (b'{"text": "%s", "a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not valid JSON"),
    "too long": (b'{"text": "%s' + b'[,\\"' * 300_000 + b'"}', "longer than 250000 bytes"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_element_costs_itself_alone(tmp_path: Path, name: str) -> None:
    template, reason = BAD[name]
    content = b'[{"text": "good"},\n' + template.replace(b"%s", TOKEN.encode()) + b',\n {"text": "last"}]'
    first, bad, last = read(tmp_path / "f.json", content, 250_000)
    assert isinstance(first, Row)
    assert isinstance(last, Row)
    assert isinstance(bad, BadRow)
    assert bad.line == 2
    assert reason in bad.reason
    assert TOKEN not in str(bad) + repr(bad)


BROKEN: dict[str, tuple[bytes, str]] = {
    "cut off": (b'[{"text": "a"}, {"text": "%s', "not closed"),
    "cut off between": (b'[{"text": "a"},', "not closed"),
    "cut off in an escape": (b'[{"text": "%s\\', "not closed"),
    "a quote": (b'[{"text": "a}, {"text": "%s"}]', "not closed"),
    "two arrays": (b'[{"text": "a"}]\n[{"text": "%s"}]', "files were joined"),
    "words behind": (b'[{"text": "a"}] %s', "files were joined"),
    "a brace too many": (b'[{"text": "a"}}, "%s"]', "closed that was not opened"),
    "a text": (b'"%s"', "not a JSON array"),
    "words": (b"%s [", "not a JSON array"),
    "gzip cut off": (gzip.compress(b'[{"text": "a"}]' + b" " * 10_000)[:-10], "damaged"),
    "UTF-16": ("[]".encode("utf-16"), "UTF-16"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_array_is_refused(tmp_path: Path, name: str) -> None:
    content, message = BROKEN[name]
    with pytest.raises(DataInvalid) as caught:
        read(tmp_path / "f.json", content.replace(b"%s", TOKEN.encode()))
    assert message in caught.value.message
    assert TOKEN not in str(caught.value) + caught.value.hint


@pytest.mark.parametrize("content", [b"[]", b" [ \n ] \n", b"", b"\n\n"])
def test_nothing_gives_no_rows(tmp_path: Path, content: bytes) -> None:
    assert read(tmp_path / "f.json", content) == []


@pytest.mark.parametrize("inside", [b"%s", b'{"text": "%s"}', b'{"text": [%s]}'])
def test_an_element_without_end_is_read_in_bounded_memory(tmp_path: Path, inside: bytes) -> None:
    before, after = inside.split(b"%s")
    fill = b"1" if inside.startswith(b"%") else b"\\\\" if b'"%' in inside else b"[[{}," + b"1" * 4000
    with gzip.open(tmp_path / "f.json.gz", "wb", 1) as file:
        file.write(b'[{"text": "good"},' + before)
        for _ in range(64):
            file.write(fill * ((1 << 20) // len(fill)))
        file.write(after + b',{"text": "last"}]')
    tracemalloc.start()
    found: list[Any] = []
    try:
        found += read_json(tmp_path / "f.json.gz", 1 << 20)
    except DataInvalid as refused:
        assert b"[" in fill
        assert "not closed" in refused.message  # noqa: PT017
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20
    assert found[0].fields == {"text": "good"}
    assert b"[" in fill or (found[1].reason, found[2].fields) == ("longer than 1048576 bytes", {"text": "last"})


def test_a_small_file_of_hundreds_of_millions_of_elements_is_refused_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "_LINES_FREE", 1 << 14)
    block = gzip.compress(b"{}," * (1 << 20))
    (tmp_path / "f.json.gz").write_bytes(gzip.compress(b"[") + block * 10)
    with pytest.raises(DataInvalid, match="more rows than a file of this size"):
        for _ in read_json(tmp_path / "f.json.gz", 100):
            pass
