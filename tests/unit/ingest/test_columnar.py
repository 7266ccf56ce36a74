"""Parquet: the values that JSON lines would give, a bad row alone rejected, a hostile file refused without a quote."""

from __future__ import annotations

import datetime as dt
import importlib.util
import io
import json
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from appliance.errors import ApplianceError, ArtefactMissing, DataInvalid, WillNotFit
from appliance.flows.data.sources import spec_for
from appliance.ingest import source
from appliance.ingest.columnar import read_parquet
from appliance.ingest.ingestion import Ingestion
from appliance.ingest.source import BadRow, Row

TOKEN = "Zyzzyva7731"


def read(path: Path, table: pa.Table | dict[str, Any], limit: int = 1 << 20, **options: Any) -> list[Row | BadRow]:
    pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), path, **options)
    return list(read_parquet(path, limit, ()))


def only(path: Path, column: Any) -> Any:
    (row,) = read(path, {"x": column})
    assert isinstance(row, Row), row
    return row.fields["x"]


VALUES: dict[str, tuple[Any, Any]] = {
    "text": (pa.array(["é"]), "é"),
    "long text": (pa.array(["a"], pa.large_string()), "a"),
    "category": (pa.array(["a"]).dictionary_encode(), "a"),
    "whole": (pa.array([7], pa.uint16()), 7),
    "number": (pa.array([1.5], pa.float32()), 1.5),
    "not a number": (pa.array([float("nan")]), None),
    "truth": (pa.array([True]), True),
    "nothing": (pa.array([None], pa.null()), None),
    "decimal": (pa.array([Decimal("1200.50")]), "1200.50"),
    "day": (pa.array([dt.date(2024, 2, 29)]), "2024-02-29"),
    "moment": (pa.array([dt.datetime.fromisoformat("2024-02-29T12:30")]), "2024-02-29T12:30:00"),
    "nanoseconds": (pa.array([1_709_210_400_000_000_001], pa.timestamp("ns", "UTC")), "2024-02-29T12:40:00+00:00"),
    "time of day": (pa.array([dt.time(8, 5)]), "08:05:00"),
    "list": (pa.array([["a", None]]), ["a", None]),
    "object": (pa.array([{"a": 1, "b": [{"c": "d"}]}]), {"a": 1, "b": [{"c": "d"}]}),
    "map": (pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())), {"k": 1}),
    "bytes that are text": (pa.array([b"abc"], pa.binary()), "abc"),
    "bytes": (pa.array([b"\xff\x00"], pa.binary()), b"\xff\x00"),
    "uuid": (pa.array([uuid.UUID(int=1).bytes], pa.uuid()), str(uuid.UUID(int=1))),
    "nested moments": (pa.array([[{"t": 1}]], pa.list_(pa.struct([("t", pa.timestamp("ns"))]))), None),
}


@pytest.mark.parametrize("name", VALUES)
def test_values_are_those_of_json(tmp_path: Path, name: str) -> None:
    column, value = VALUES[name]
    found = only(tmp_path / "f.parquet", column)
    assert found == ([{"t": "1970-01-01T00:00:00"}] if name == "nested moments" else value)


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd", "gzip"])
def test_it_is_the_same_data_as_lines(tmp_path: Path, compression: str) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"what of {n}?"}, {"role": "assistant", "content": f"it is {n}"}]}
        for n in range(300)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", compression=compression, row_group_size=70)
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, rows)))
    prints = []
    for name in ("a.parquet", "b.jsonl"):
        ingestion = Ingestion([tmp_path / name], spec_for([tmp_path / name], "auto"), b"k" * 32)
        assert len(list(ingestion)) == 300
        prints.append(ingestion.fingerprints)
    assert prints[0] == prints[1]


def test_a_bad_row_costs_itself_alone_and_has_its_number(tmp_path: Path) -> None:
    raw = pa.array([b"first", TOKEN.encode() + b"\xff", b"third"], pa.binary()).cast(pa.binary())
    text = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    table = {"text": text, "n": [1.0, 2.0, float("inf")], "day": pa.array([1, 2, 3], pa.date32())}
    first, second, third = read(tmp_path / "f.parquet", table)
    assert isinstance(first, Row)
    assert (first.line, first.offset) == (1, None)
    assert isinstance(second, BadRow)
    assert "not UTF-8" in second.reason
    assert str(second).startswith(f"{tmp_path / 'f.parquet'}:2: ")
    assert TOKEN not in repr(second)
    assert isinstance(third, BadRow)
    assert third.reason == "holds an infinite number"


@pytest.mark.parametrize("value", ["x" * 2000, ["x" * 400] * 5, {"a": {"b": "ü" * 600}}])
def test_a_huge_cell_is_refused(tmp_path: Path, value: Any) -> None:
    small = {str: "a", list: ["a"], dict: {"a": {"b": "a"}}}[type(value)]
    first, second = read(tmp_path / "f.parquet", {"text": pa.array([small, value])}, limit=1000)
    assert isinstance(first, Row)
    assert isinstance(second, BadRow)
    assert second.reason == "longer than 1000 bytes"


def test_bytes_and_objects_become_no_text(tmp_path: Path) -> None:
    table = {"text": pa.array([b"good", b"\xff"]), "other": pa.array([{"a": 1}, {"a": 2}])}
    pq.write_table(pa.table(table), tmp_path / "f.parquet")
    for column, kept, reason in (("text", ["good"], "neither text nor"), ("other", [], "neither text nor")):
        ingestion = Ingestion(
            [tmp_path / "f.parquet"], spec_for([tmp_path / "f.parquet"], "auto", text=column), b"k" * 32
        )
        try:
            assert [record.parts[0][1] for record in ingestion] == kept
        except DataInvalid:
            assert kept == []
        assert all(reason in row.reason for row in ingestion.rejected)


def test_each_file_has_its_own_schema(tmp_path: Path) -> None:
    tables: list[dict[str, Any]] = [
        {"who": [1, 2], "text": ["a", "b"]},
        {"text": pa.array(["c", "d"]).dictionary_encode(), "x": [[1], []], "who": ["1", "3"]},
    ]
    paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    for path, table in zip(paths, tables, strict=True):
        pq.write_table(pa.table(table), path)
    ingestion = Ingestion(paths, spec_for(paths, "auto", text="text", subject="who", max_records=9), b"k" * 32)
    units = {record.parts[0][1]: record.unit for record in ingestion}
    assert units["a"] == units["c"], "a number and a text name the same person"
    assert len(set(units.values())) == 3
    pq.write_table(pa.table({"texts": [TOKEN]}), tmp_path / "c.parquet")
    with pytest.raises(DataInvalid, match="no column 'text'") as caught:
        list(Ingestion([*paths, tmp_path / "c.parquet"], spec_for(paths, "auto", text="text"), b"k" * 32))
    assert TOKEN not in str(caught.value)


def written(table: dict[str, Any], **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(table), sink, **options)
    return sink.getvalue()


WHOLE = written({"text": [f"{TOKEN} {n * n % 997}" for n in range(2000)]}, compression="none", write_page_checksum=True)


@pytest.mark.parametrize("kept", [0, 4, 8, 100, len(WHOLE) // 2, len(WHOLE) - 8, len(WHOLE) - 1])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: int) -> None:
    (tmp_path / "f.parquet").write_bytes(WHOLE[:kept])
    with pytest.raises(DataInvalid) as caught:
        list(read_parquet(tmp_path / "f.parquet", 1 << 20, ()))
    assert TOKEN not in str(caught.value) + caught.value.hint


def test_a_flipped_byte_is_an_error_or_a_row_and_never_a_traceback(tmp_path: Path) -> None:
    """Of the pages the checksum tells; of the description, whatever pyarrow finds."""
    refused = 0
    for at in (*range(4, len(WHOLE) - 8, len(WHOLE) // 60), *range(len(WHOLE) - 400, len(WHOLE), 7)):
        (tmp_path / "f.parquet").write_bytes(WHOLE[:at] + bytes([WHOLE[at] ^ 0x41]) + WHOLE[at + 1 :])
        try:
            list(read_parquet(tmp_path / "f.parquet", 1 << 20, ()))
        except ApplianceError as error:
            refused += 1
            assert TOKEN not in str(error) + error.hint  # noqa: PT017
    assert refused > 60


@pytest.mark.parametrize("content", [b"", b"{}", b"PK\x03\x04", b"PARE" + WHOLE[4:], b"\x1f\x8b" + WHOLE])
def test_what_is_something_else_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "f.parquet").write_bytes(content)
    with pytest.raises(DataInvalid, match="not a Parquet file"):
        list(read_parquet(tmp_path / "f.parquet", 1 << 20, ()))


def test_a_small_file_of_a_hundred_million_rows_is_refused_before_it_is_read(tmp_path: Path) -> None:
    one = pa.array(["a"] * (1 << 20)).dictionary_encode()
    with pq.ParquetWriter(tmp_path / "f.parquet", pa.schema([("text", one.type)])) as writer:
        for _ in range(8):
            writer.write_table(pa.table({"text": one}))
    assert (tmp_path / "f.parquet").stat().st_size < 1 << 20
    with pytest.raises(DataInvalid, match="more rows than a file of this size"):
        list(read_parquet(tmp_path / "f.parquet", 1 << 20, ()))


def test_a_file_that_takes_far_longer_than_its_size_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "_SECONDS_FREE", 0.0)
    monkeypatch.setattr(source, "_SLOWEST", 1 << 40)
    with pytest.raises(WillNotFit, match="reading took longer"):
        read(tmp_path / "f.parquet", {"text": ["a"] * 10_000})


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataInvalid, match="same name"):
        read(tmp_path / "f.parquet", pa.Table.from_arrays([pa.array(["a"])] * 2, names=["text", "text"]))


@pytest.mark.parametrize("depth", [50, 900])
def test_deep_nesting_ends_in_an_error_or_a_row(tmp_path: Path, depth: int) -> None:
    kind, value = pa.string(), TOKEN
    for _ in range(depth):
        kind, value = pa.list_(kind), [value]  # type: ignore[assignment]
    try:
        rows = read(tmp_path / "f.parquet", {"text": pa.array([value], kind)})
    except ApplianceError as error:
        assert TOKEN not in str(error)  # noqa: PT017
    else:
        assert len(rows) == 1


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f.parquet").write_bytes(WHOLE)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ArtefactMissing, match="pyarrow") as caught:
        Ingestion([tmp_path / "f.parquet"], spec_for([tmp_path / "f.parquet"], "auto"), b"k" * 32)
    assert "appliance[parquet]" in caught.value.hint
