"""How foreign tables are read, where that is found out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from appliance.errors import ApplianceError
from appliance.flows.data.ingest import memory_for
from appliance.ingest.dialect import detect
from appliance.ingest.reading import require_reader
from appliance.ingest.spec import IngestSpec
from appliance.isolation import process


def describe(paths: Sequence[Path], spec: IngestSpec) -> list[str]:
    """Say a line for each file that can be read: the dialect of a delimited one, the sheet of a workbook."""
    lines = []
    for path in paths:
        with suppress(ApplianceError), process.growth_limited(memory_for([path])):  # the ingest itself says why
            lines += [f"{path}: {said}" for said in _describe(path, spec)]
    return lines


def _describe(path: Path, spec: IngestSpec) -> list[str]:
    if spec.format in ("csv", "tsv"):
        return [str(detect(path, spec))]
    if spec.format == "xlsx":
        require_reader(spec)
        from appliance.ingest.sheets import name_sheet

        return [name_sheet(path, spec.sheet)]
    return []
