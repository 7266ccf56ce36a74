"""How foreign files are read, from what the operator said about them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from appliance.errors import DataInvalid, UsageError
from appliance.ingest import dialect
from appliance.ingest.spec import IngestSpec
from appliance.ingest.subjects import FROM_FILE
from appliance.ingest.text import SPLIT
from appliance.jobs.plan import UnitKind, UnitOfPrivacy

FORMATS = ("jsonl", "json", "csv", "tsv", "text", "parquet", "xlsx")
SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "text",
    ".md": "text",
    ".parquet": "parquet",
    ".xlsx": "xlsx",
    ".xlsm": "xlsx",
}


_FOREIGN = {
    **dict.fromkeys((".xls", ".xlsb", ".ods"), "such a workbook is not read: save it as .xlsx"),
    **dict.fromkeys(
        (".feather", ".arrow", ".orc"), "such columnar files are not read: convert them to Parquet or JSONL"
    ),
    **dict.fromkeys(
        (".docx", ".doc", ".pdf", ".rtf", ".odt", ".html", ".htm", ".xml", ".epub", ".eml"),
        "documents are not read: save them as plain text",
    ),
    **dict.fromkeys(
        (".zip", ".7z", ".rar", ".tar", ".tgz", ".bz2", ".xz", ".zst"), "of packed files only .gz is read: unpack it"
    ),
    **dict.fromkeys(
        (".db", ".sqlite", ".mdb", ".sav", ".dta", ".sas7bdat", ".avro"), "export the table to CSV UTF-8, or to JSONL"
    ),
}
"""What is often brought and not read, and what to do about it."""


def find_files(paths: Sequence[Path], format_name: str) -> tuple[list[Path], list[Path]]:
    """Find the files that are meant: those named, and all in directories that are named, by their names.

    Hidden files and symbolic links in a directory are passed over.

    Returns:
      the files of one format, and those in directories that are of another.

    Raises:
      DataInvalid: a directory holds no file of a known format.
    """
    found: list[Path] = []
    others: list[Path] = []
    for path in paths:
        inside = list(_inside(path)) if path.is_dir() and not path.is_symlink() else [path]
        known = [_format_of(file) for file in inside]
        wanted = format_name if format_name != "auto" else next((name for name in known if name), None)
        if path not in inside and wanted not in known:
            hint = f"files end in {', '.join(SUFFIXES)}, or with .gz behind it"
            raise DataInvalid("the directory holds no file that can be read", hint=hint, where=str(path))
        for file, name in zip(inside, known, strict=True):
            (found if file == path or name == wanted else others).append(file)
    return found, others


def _inside(directory: Path) -> Iterator[Path]:
    for root, directories, files in os.walk(directory):
        directories[:] = sorted(name for name in directories if not name.startswith("."))
        plain = (Path(root, name) for name in sorted(files) if not name.startswith("."))
        yield from (path for path in plain if not path.is_symlink())


def spec_for(
    paths: Sequence[Path],
    format_name: str,
    *,
    prompt: str = "",
    completion: str = "",
    text: str = "",
    subject: str = "",
    subject_from: str = "",
    max_records: int = 1,
    split: str = "",
    unescape_html: bool = False,
    keep: Sequence[str] = (),
    delimiter: str = "",
    encoding: str = "",
    sheet: str = "",
) -> IngestSpec:
    """Choose the reading rules for `paths`; format "auto" goes by the first file's suffix.

    Args:
      paths: files.
      format_name: one of `FORMATS`, or "auto".
      prompt: as in `IngestSpec`, like `completion`, `text`, `unescape_html` and `keep`.
      completion: see there.
      text: see there.
      subject: column that names the subject.
      subject_from: what of a file's place names him instead (`ingest.subjects`).
      max_records: most records of a subject.
      split: of plain text, what one record is; a file unless it is said.
      unescape_html: see there.
      keep: see there.
      delimiter: of CSV, one character, or "tab"; found out unless it is said.
      encoding: of CSV and TSV, as people write it; found out unless it is said.
      sheet: of a workbook, its name; the first one unless it is said.

    Raises:
      UsageError: the format cannot be told, or what is named does not fit together.
    """
    if format_name == "auto":
        format_name = _by_suffix(paths[0])
    if format_name not in FORMATS:
        raise UsageError(f"no format {format_name}", hint=f"one of: auto, {', '.join(FORMATS)}")
    if subject and subject_from:
        raise UsageError("the subject is named by a column or by the file, not by both")
    if split and (format_name != "text" or not SPLIT.fullmatch(split)):
        hint = "file, paragraph, line or such as 400-tokens, for plain text"
        raise UsageError(f"--split {split} is not a way to split {format_name}", hint=hint)
    key = f"{FROM_FILE}{subject_from}" if subject_from else subject or None
    unit = UnitOfPrivacy(
        kind=UnitKind.SUBJECT if key else UnitKind.RECORD,
        key=key,
        max_records=max_records if key else 1,
        split=(split or "file") if format_name == "text" else None,
    )
    return IngestSpec(
        format=format_name,  # type: ignore[arg-type]
        prompt=prompt or None,
        completion=completion or None,
        text=text or None,
        unit=unit,
        unescape_html=unescape_html,
        keep=tuple(keep),
        delimiter=dialect.name_delimiter(delimiter),
        encoding=dialect.name_encoding(encoding),
        sheet=sheet,
    )


def _by_suffix(path: Path) -> str:
    name = _format_of(path)
    if name is None:
        hint = _FOREIGN.get(path.suffix.lower(), "say it with --format")
        raise UsageError(f"cannot tell the format of {path.name}", hint=hint)
    return name


def _format_of(path: Path) -> str | None:
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    return SUFFIXES.get(suffix.lower())
