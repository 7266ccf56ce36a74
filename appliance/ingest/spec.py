"""How files are to be understood: their format, the shape of a record, the unit of privacy."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from appliance.errors import UsageError
from appliance.ingest.subjects import FROM_FILE, subject_reader
from appliance.jobs.plan import UnitKind, UnitOfPrivacy
from appliance.names import require_line

Format = Literal["jsonl", "json", "csv", "tsv", "text", "parquet", "xlsx"]
Shape = Literal["auto", "messages", "sharegpt", "alpaca", "prompt-completion", "text"]

_RECORD = UnitOfPrivacy()
_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]+)\}|[{}]")


@dataclass(frozen=True, slots=True)
class Template:
    """A text with `{column}` placeholders. Without any brace it is the name of one column.

    Attributes:
      source: as it was written; `{{` and `}}` stand for braces.
      pieces: literals and column names in turn; literals at even positions.
    """

    source: str
    pieces: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "pieces", _pieces(self.source))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it needs, in order."""
        return self.pieces[1::2]


def _pieces(source: str) -> tuple[str, ...]:
    if "{" not in source and "}" not in source:
        return ("", source, "")
    pieces, end = [""], 0
    for match in _PIECE.finditer(source):
        pieces[-1] += source[end : match.start()]
        end = match.end()
        if match[1] is not None:
            pieces += [match[1], ""]
        elif len(match[0]) == 2:
            pieces[-1] += match[0][0]
        else:
            raise UsageError("a brace in a template stands alone", hint="write {column}, or {{ for a brace itself")
    if len(pieces) == 1:
        raise UsageError("a template names no column", hint="write {column}, or the name of a column alone")
    pieces[-1] += source[end:]
    return tuple(pieces)


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestSpec:
    """How to read a set of files. Every field is public and goes into the ledger.

    Attributes:
      format: of all files; gzip is recognised by itself, but for Parquet and workbooks. Text is UTF-8, with or without
        a byte order mark; CSV and TSV may be Windows-1252.
      shape: "messages" (a list of role and content), "sharegpt" (`conversations` with `from` and `value`), "alpaca"
        (`instruction`, `input` which may be empty, `output`), "prompt-completion", "text", or "auto":
        prompt-completion or text if templates are given, else by the columns each row has.
      prompt: column or template of the prompt.
      completion: column or template of the completion.
      text: column or template of a plain text.
      unit: the unit of privacy; a subject's `key` names a column, or the file's place (`ingest.subjects`). For format
        "text" its `split` says what one record is; for others there is none.
      unescape_html: turn character references such as `&#039;` into characters, in every column.
      keep: columns whose value is sealed beside every record, for the filters of a curriculum.
      delimiter: of CSV, what stands between columns; empty finds it out for each file (`ingest.dialect`).
      encoding: of CSV and TSV, one of `ingest.dialect.ENCODINGS`; empty finds it out for each file.
      sheet: of a workbook, the name of the sheet; empty is the first one that is not hidden.
      max_row_bytes: longer rows are rejected; it bounds the memory a row can take.

    Raises:
      UsageError: for a combination that means nothing.
    """

    format: Format
    shape: Shape = "auto"
    prompt: str | None = None
    completion: str | None = None
    text: str | None = None
    unit: UnitOfPrivacy = _RECORD
    unescape_html: bool = False
    keep: tuple[str, ...] = ()
    delimiter: str = ""
    encoding: str = ""
    sheet: str = ""
    max_row_bytes: int = 4 << 20

    def __post_init__(self) -> None:
        _check_templates(self)
        _check_unit(self.unit, self.format)
        for column in (*self.columns, *([self.unit.key] if self.unit.key else [])):
            require_line(column, "the name of a column")
        if self.keep and self.format == "text":
            raise UsageError("a plain text file has no column to keep")
        if (self.delimiter and self.format != "csv") or (self.encoding and self.format not in ("csv", "tsv")):
            raise UsageError(f"--delimiter is said for CSV, --encoding for CSV and TSV, not for {self.format}")
        if self.sheet and self.format != "xlsx":
            raise UsageError(f"--sheet is said for workbooks, not for {self.format}")
        if self.max_row_bytes < 1:
            raise UsageError("max_row_bytes must be positive")

    @property
    def reading(self) -> str:
        """The format, and of plain text what one record is, behind a colon."""
        return f"{self.format}:{self.unit.split}" if self.unit.split else self.format

    @property
    def resolved_shape(self) -> Shape:
        """The shape, where the templates decide what "auto" means."""
        if self.shape != "auto":
            return self.shape
        if self.prompt is not None:
            return "prompt-completion"
        return "text" if self.text is not None or self.format == "text" else "auto"

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the templates, the unit of privacy and the kept fields need."""
        subject = (self.unit.key,) if self.unit.key is not None and not self.unit.key.startswith(FROM_FILE) else ()
        return tuple(dict.fromkeys([*self.text_columns, *subject, *self.keep]))

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The columns that the templates name, in order."""
        templates = [Template(t) for t in (self.prompt, self.completion, self.text) if t is not None]
        return tuple(dict.fromkeys(c for t in templates for c in t.columns))


def _check_templates(spec: IngestSpec) -> None:
    pair = spec.prompt is not None
    if pair != (spec.completion is not None):
        raise UsageError("prompt and completion are given together or not at all")
    if pair and (spec.text is not None or spec.shape not in ("auto", "prompt-completion")):
        raise UsageError("prompt and completion belong to the shape prompt-completion")
    if spec.text is not None and spec.shape not in ("auto", "text"):
        raise UsageError("text belongs to the shape text")
    if spec.format == "text" and (pair or spec.text is not None or spec.shape not in ("auto", "text")):
        raise UsageError("a plain text file has no columns and only the shape text")
    if spec.format in ("csv", "tsv", "xlsx") and spec.shape in ("messages", "sharegpt"):
        raise UsageError(f"the shape {spec.shape} is read from JSON and Parquet only")
    assert spec.columns is not None  # noqa: S101  (reads every template, so a malformed one is refused here)


def _check_unit(unit: UnitOfPrivacy, file_format: Format) -> None:
    if unit.kind == UnitKind.SUBJECT and not unit.key:
        raise UsageError("the unit of privacy 'subject' needs the column that names the subject")
    if unit.key is not None:
        subject_reader(unit.key)
    if unit.kind == UnitKind.SUBJECT and file_format == "text" and not (unit.key or "").startswith(FROM_FILE):
        hint = "take it from the file's place with --subject-from"
        raise UsageError("a plain text file has no column that names a subject", hint=hint)
    if unit.split is not None and file_format != "text":
        raise UsageError("what one record is, is said for plain text and for nothing else")
    if unit.kind == UnitKind.RECORD and (unit.key is not None or unit.max_records != 1):
        raise UsageError("the unit of privacy 'record' has neither a key column nor a cap")
