"""A whole ingest: files in, validated and bounded Records out, with everything that was rejected listed by place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from appliance.errors import DataInvalid
from appliance.ingest.fingerprints import Fingerprinter, sort_unique
from appliance.ingest.keyset import KeySet
from appliance.ingest.reading import read_rows, require_reader
from appliance.ingest.shapes import Parts, keep_columns, shaper, unescape
from appliance.ingest.source import BadRow, Row, RowRefused, check_source
from appliance.ingest.spec import IngestSpec
from appliance.ingest.subjects import check_names, subject_reader
from appliance.jobs.plan import UnitKind
from appliance.jobs.record import Record, RecordKind
from appliance.values import Private

MAX_LISTED = 10_000
_BATCH = 1024


class _Candidate(NamedTuple):
    key: bytes
    unit: bytes
    kind: RecordKind
    parts: Parts
    fields: Parts
    fingerprints: bytes


class Side(NamedTuple):
    """One side of a division of all units: those that are held out, or the others.

    Attributes:
      fraction: of all units, that is held out.
      held_out: which side is meant.
    """

    fraction: Fraction
    held_out: bool


class Ingestion:
    """Reads files once, in order, and yields their Records.

    Rows that say the same (`ingest.sameness`) are merged: the first is kept, within the whole dataset if a record is
    the unit of privacy, within one subject if a subject is. (A record that two subjects share stays with both;
    otherwise one subject's presence would change what is kept of the other.) Of each subject the first `max_records`
    different records are kept. Whether a row is kept thus depends on nothing but the rows of its own unit.

    A record's `unit` is a keyed fingerprint in hex, so a subject's name is not stored again beside its records.

    Args:
      paths: regular files, not empty; all are opened once at the start, so that a missing one is told at once.
      spec: how to read them.
      fingerprint_key: 32 bytes.
      side: of which units the records are yielded; None is all.
      told: given each rejected row when it is met, so that they are seen too where none is left in the end.

    Raises:
      ArtefactMissing: if a file is not there, or the package that reads its format.
      DataInvalid: if a file is not a regular one, or its name does not fit the unit of privacy; while iterating also
        if a file is damaged, or if not one row of all files is usable.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        spec: IngestSpec,
        fingerprint_key: bytes,
        told: Callable[[BadRow], None] = lambda row: None,
        *,
        side: Side | None = None,
    ) -> None:
        if not paths:
            raise DataInvalid("no file was named")
        require_reader(spec)
        for path in paths:
            check_source(path)
        if spec.unit.key is not None:
            check_names(tuple(paths), spec.unit.key)
        self._paths = tuple(paths)
        self._spec = spec
        self._side = side
        self._shape = shaper(spec)
        key = spec.unit.key
        self._subject = None if key is None else subject_reader(key)
        self._print = Fingerprinter(fingerprint_key)
        self._found = bytearray()
        self._seen = KeySet()
        self._of_subject: dict[bytes, int] = {}
        self._rejected: list[BadRow] = []
        self._counts = {"rejected": 0, "accepted": 0, "records": 0}
        self._state = "new"
        self._told = told

    def __iter__(self) -> Iterator[Record]:
        if self._state != "new":
            raise RuntimeError("an ingestion is read once")
        self._state = "running"
        batch: list[_Candidate] = []
        for path in self._paths:
            for row in read_rows(path, self._spec):
                candidate = self._candidate(row, path)
                if candidate is not None:
                    batch.append(candidate)
                if len(batch) >= _BATCH:
                    yield from self._keep_new(batch)
                    batch.clear()
        yield from self._keep_new(batch)
        self._finish()

    @property
    def rejected(self) -> list[BadRow]:
        """The rejected rows in file order, the first `MAX_LISTED` of them."""
        return list(self._rejected)

    @property
    def rejected_count(self) -> Private[int]:
        """How many rows were rejected."""
        return Private(self._counts["rejected"])

    @property
    def accepted_count(self) -> Private[int]:
        """How many rows were well-formed, duplicates and those above a subject's cap included."""
        return Private(self._counts["accepted"])

    @property
    def records(self) -> Private[int]:
        """How many records were yielded."""
        return Private(self._counts["records"])

    @property
    def units(self) -> Private[int]:
        """How many units of privacy the yielded records belong to."""
        return Private(len(self._of_subject) if self._spec.unit.kind == UnitKind.SUBJECT else self._counts["records"])

    @property
    def fingerprints(self) -> bytes:
        """Sorted, unique, 16 bytes each: of the yielded records, their subjects, and their source rows' long texts."""
        if self._state != "done":
            raise RuntimeError("the files have not been read to their end")
        return sort_unique(self._found)

    def _candidate(self, row: Row | BadRow, path: Path) -> _Candidate | None:
        if isinstance(row, BadRow):
            self._reject(row)
            return None
        fields = unescape(row.fields) if self._spec.unescape_html else row.fields
        try:
            kind, parts = self._shape(fields)
            kept = keep_columns(fields, self._spec.keep)
            key = unit = record = self._print.record(parts)
            if self._subject is not None:
                unit = self._print.subject(self._subject(fields, path))
                key = self._print.pair(unit, record)
        except RowRefused as refused:
            self._reject(BadRow(str(path), row.line, row.offset, str(refused)))
            return None
        prints = self._print.contents(fields, self._spec.text_columns, parts, row.passages)
        return _Candidate(key, unit, kind, parts, kept, prints)

    def _reject(self, row: BadRow) -> None:
        self._counts["rejected"] += 1
        if len(self._rejected) < MAX_LISTED:
            self._rejected.append(row)
            self._told(row)

    def _keep_new(self, batch: list[_Candidate]) -> Iterator[Record]:
        self._counts["accepted"] += len(batch)
        new = self._seen.add(b"".join([candidate.key for candidate in batch]))
        for candidate, is_new in zip(batch, new, strict=True):
            if is_new and self._is_meant(candidate.unit) and self._has_room(candidate.unit):
                self._counts["records"] += 1
                self._found += candidate.fingerprints
                yield Record(
                    unit=candidate.unit.hex(), kind=candidate.kind, parts=candidate.parts, fields=candidate.fields
                )

    def _is_meant(self, unit: bytes) -> bool:
        return self._side is None or self._print.is_held_out(unit, self._side.fraction) == self._side.held_out

    def _has_room(self, unit: bytes) -> bool:
        """Tell whether this unit may give another record; counts it if so."""
        if self._spec.unit.kind == UnitKind.RECORD:
            return True
        before = self._of_subject.get(unit, 0)
        if before >= self._spec.unit.max_records:
            return False
        if not before:
            self._found += unit
        self._of_subject[unit] = before + 1
        return True

    def _finish(self) -> None:
        self._state = "done"
        if self._counts["accepted"]:
            return
        if not self._rejected:
            raise DataInvalid("the files hold no rows", where=str(self._paths[0]))
        first = "; ".join(f"{bad.place}: {bad.reason}" for bad in self._rejected[:3])
        hint = (
            f"check --format and the columns; {first}"  # places of private rows: for the terminal, not for the ledger
        )
        raise DataInvalid("not one row can be used", hint=hint, where=self._rejected[0].file)
