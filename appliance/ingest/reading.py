"""One way to read every format: a stream of rows and bad rows, each with its line and byte offset."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from appliance.ingest.delimited import read_delimited
from appliance.ingest.dialect import detect
from appliance.ingest.jsonl import read_jsonl
from appliance.ingest.source import BadRow, Row
from appliance.ingest.spec import IngestSpec
from appliance.ingest.text import read_text


def read_rows(path: Path, spec: IngestSpec) -> Iterator[Row | BadRow]:
    """Read the rows of a file as `spec` says. Raises `DataInvalid` or `ArtefactMissing` for the file itself."""
    if spec.format == "jsonl":
        return read_jsonl(path, spec.max_row_bytes)
    if spec.format == "text":
        return read_text(path, spec.unit.split or "file", spec.max_row_bytes)
    return read_delimited(path, detect(path, spec), spec.max_row_bytes, spec.columns)
