"""How a CSV or TSV file is written: its encoding, what stands between the columns, and a first line that says so.

Excel writes what the country's settings say: `;` where the comma is decimal, Windows-1252 unless UTF-8 is asked for,
and sometimes a line `sep=;` before the header. The delimiter is found out by the header alone. The encoding is found
out line by line: were it decided for a file, one person's row would change how all others are read.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import UsageError
from appliance.ingest.source import RowRefused, lines
from appliance.ingest.spec import IngestSpec

ENCODINGS = {"utf-8": "UTF-8", "cp1252": "Windows-1252"}
"""Encodings by Python's name, and as people call them."""
_CALLED = {"utf-8": "utf-8", "utf8": "utf-8", "windows-1252": "cp1252", "cp1252": "cp1252", "latin-1": "cp1252"}
_DELIMITERS = (",", ";", "\t", "|")
_SAID = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";"}


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one file is written.

    Attributes:
      delimiter: what stands between columns.
      encoding: a key of `ENCODINGS`; empty is UTF-8, or Windows-1252 where a line is not UTF-8.
      announced: its first line is `sep=`, and no row.
    """

    delimiter: str
    encoding: str
    announced: bool = False

    def __str__(self) -> str:
        between = {"\t": "tabs"}.get(self.delimiter, f"'{self.delimiter}'")
        encoding = ENCODINGS[self.encoding] if self.encoding else "UTF-8, or Windows-1252 where a line is not"
        return f"{encoding}; columns between {between}{' as its first line says' if self.announced else ''}"

    def decode(self, line: bytes) -> str:
        """Decode a line. Raises `RowRefused`."""
        for encoding in (self.encoding,) if self.encoding else ENCODINGS:
            with suppress(UnicodeDecodeError):
                return line.decode(encoding)
        raise RowRefused(f"not {ENCODINGS[self.encoding]}" if self.encoding else "neither UTF-8 nor Windows-1252")


def name_delimiter(said: str) -> str:
    """Understand what an operator calls a delimiter; empty stays empty. Raises `UsageError`."""
    delimiter = _SAID.get(said.lower(), said)
    if delimiter and delimiter not in _DELIMITERS:
        raise UsageError(f"'{said}' cannot stand between columns", hint="one of: ',', ';', '|', tab")
    return delimiter


def name_encoding(said: str) -> str:
    """Understand what an operator calls an encoding; empty stays empty. Raises `UsageError`."""
    if said and said.lower() not in _CALLED:
        raise UsageError(f"no encoding {said} is read", hint="utf-8 or windows-1252; convert others with iconv")
    return _CALLED[said.lower()] if said else ""


def detect(path: Path, spec: IngestSpec) -> Dialect:
    """Find out how a file is written, where the operator has not said it. Raises `DataInvalid` as `lines` does."""
    head = [line or b"" for _, _, line in itertools.islice(lines(path, spec.max_row_bytes), 2)]
    first = head[0].strip() if head else b""
    announced = spec.format == "csv" and first.lower().startswith(b"sep=") and len(first) in (4, 5)
    if spec.format == "tsv":
        return Dialect("\t", spec.encoding)
    if announced and not spec.delimiter:
        return Dialect(first[4:].decode("ascii", "replace") or "\t", spec.encoding, announced)
    header = head[-1] if announced else b"".join(head[:1])
    delimiter = spec.delimiter or _detect_delimiter(header.decode("utf-8", "replace"), spec.columns)
    return Dialect(delimiter, spec.encoding, announced)


def _detect_delimiter(header: str, required: Sequence[str]) -> str:
    """Choose what gives all required columns, else what gives most; a comma where nothing is better."""
    columns = {delimiter: _split(header, delimiter) for delimiter in _DELIMITERS}
    for delimiter, found in columns.items():
        if required and set(required) <= set(found):
            return delimiter
    return "," if required else max(_DELIMITERS, key=lambda delimiter: len(columns[delimiter]))


def _split(header: str, delimiter: str) -> list[str]:
    try:
        return [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]
    except csv.Error:
        return []
