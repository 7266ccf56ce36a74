"""One way to read every format: a stream of rows and bad rows, each with its place."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from appliance.errors import ArtefactMissing
from appliance.ingest.delimited import read_delimited
from appliance.ingest.dialect import detect
from appliance.ingest.json_array import read_json
from appliance.ingest.jsonl import read_jsonl
from appliance.ingest.source import BadRow, Row
from appliance.ingest.spec import IngestSpec
from appliance.ingest.text import read_text

_PACKAGES = {"parquet": "pyarrow", "xlsx": "openpyxl"}


def require_reader(spec: IngestSpec) -> None:
    """Raise `ArtefactMissing` if the package that reads this format is not installed."""
    package = _PACKAGES.get(spec.format)
    if package and importlib.util.find_spec(package) is None:
        hint = f"pip install 'appliance[{spec.format}]', or convert the files to JSONL or CSV UTF-8"
        raise ArtefactMissing(f"{spec.format} is read by the package {package}, which is not installed", hint=hint)


def read_rows(path: Path, spec: IngestSpec) -> Iterator[Row | BadRow]:
    """Read the rows of a file as `spec` says. Raises `DataInvalid` or `ArtefactMissing` for the file itself."""
    if spec.format == "jsonl":
        return read_jsonl(path, spec.max_row_bytes)
    if spec.format == "json":
        return read_json(path, spec.max_row_bytes)
    if spec.format == "text":
        return read_text(path, spec.unit.split or "file", spec.max_row_bytes)
    if spec.format == "parquet":
        from appliance.ingest.columnar import read_parquet

        return read_parquet(path, spec.max_row_bytes, spec.columns)
    if spec.format == "xlsx":
        from appliance.ingest.sheets import read_sheet

        return read_sheet(path, spec.sheet, spec.max_row_bytes, spec.columns)
    return read_delimited(path, detect(path, spec), spec.max_row_bytes, spec.columns)
