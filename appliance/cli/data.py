"""`appliance data`: ingest, list, show, retire, verify."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from appliance.cli import completing, render, settings
from appliance.cli.settings import Settings
from appliance.events.states import Purpose
from appliance.flows.catalog import find_dataset
from appliance.flows.data.declaring import Declaration, divide, read_fraction
from appliance.flows.data.describe import describe
from appliance.flows.data.ingest import Ingested, try_ingest
from appliance.flows.data.ingest import ingest as ingest_flow
from appliance.flows.data.retire import preview as preview_retiring
from appliance.flows.data.retire import retire as retire_data
from appliance.flows.data.sources import find_files, spec_for
from appliance.flows.data.verify import verify as verify_data
from appliance.ingest.source import BadRow
from appliance.ingest.spec import IngestSpec
from appliance.ledger.rows import DatasetRow

app = typer.Typer()

LISTED = 20
PROMPT_HELP = "Column with the prompt, or a template such as 'Note on {topic}:'."
PATHS_HELP = "JSON, JSONL, CSV, TSV or text files, also gzipped; Parquet files or workbooks; or directories."
FORMAT_HELP = "auto, jsonl, json, csv, tsv, text, parquet or xlsx."
SPLIT_HELP = "What one record of plain text is: file (unless told), paragraph, line, or such as 400-tokens."
HELD_OUT_HELP = "Part of the units to hold out for evaluation, as a dataset of its own: such as 10%."
SUBJECT_FROM_HELP = "The file's place names the subject: 'directory', or a pattern such as '{subject}_*.txt'."
COMPLETION_HELP = "Column with the completion, or a template such as '{summary}'."


@app.command()
def ingest(
    context: typer.Context,
    paths: Annotated[list[Path], typer.Argument(help=PATHS_HELP)],
    name: Annotated[str, typer.Option(help="A name for the dataset.")],
    units: Annotated[int, typer.Option(min=1, help="About how many units of privacy (records or subjects) there are.")],
    class_name: Annotated[str, typer.Option("--class", help="Class of data in the policy.")] = "default",
    purpose: Annotated[Purpose, typer.Option(help="What the data may be used for.")] = Purpose.TRAINING,
    format_: Annotated[str, typer.Option("--format", help=FORMAT_HELP)] = "auto",
    prompt: Annotated[str, typer.Option(help=PROMPT_HELP)] = "",
    completion: Annotated[str, typer.Option(help=COMPLETION_HELP)] = "",
    text: Annotated[str, typer.Option(help="Column (or template) with plain text to continue.")] = "",
    subject: Annotated[
        str, typer.Option(help="Column that names whom a record is about; the unit of privacy is then the subject.")
    ] = "",
    subject_from: Annotated[str, typer.Option(help=SUBJECT_FROM_HELP)] = "",
    max_records: Annotated[int, typer.Option(min=1, help="At most so many records per subject, in file order.")] = 1,
    split: Annotated[str, typer.Option(help=SPLIT_HELP)] = "",
    held_out: Annotated[str, typer.Option(help=HELD_OUT_HELP)] = "",
    held_out_name: Annotated[str, typer.Option(help="A name for the held-out dataset. (default NAME-held-out)")] = "",
    keep: Annotated[
        list[str] | None, typer.Option(help="Column to seal beside each record, for a curriculum; may be repeated.")
    ] = None,
    delimiter: Annotated[str, typer.Option(help="Of CSV: ',', ';', '|' or 'tab'. Found out unless it is said.")] = "",
    encoding: Annotated[
        str, typer.Option(help="Of CSV and TSV: utf-8 or windows-1252. Found out unless it is said.")
    ] = "",
    sheet: Annotated[
        str, typer.Option(help="Of a workbook: the name of the sheet. The first that is not hidden unless it is said.")
    ] = "",
    unescape_html: Annotated[bool, typer.Option(help="Turn HTML entities such as &amp; into characters.")] = False,
) -> None:
    """Read foreign files, validate every row, and seal them as one dataset.

    Rows that cannot be used are listed by file, line and byte offset; nothing of their content is shown.
    """
    chosen = settings.of(context)
    files, others = find_files(paths, format_)
    spec = spec_for(
        files, format_, prompt=prompt, completion=completion, text=text, subject=subject, subject_from=subject_from,
        max_records=max_records, split=split, unescape_html=unescape_html, keep=keep or (),
        delimiter=delimiter, encoding=encoding, sheet=sheet,
    )  # fmt: skip
    declared = Declaration(
        name=name, units=units, class_name=class_name, purpose=purpose,
        held_out=read_fraction(held_out), held_out_name=held_out_name,
    )  # fmt: skip
    left_out = [f"left out {path}: not {spec.format}" for path in others[:LISTED]]
    render.notes(chosen, [*left_out, *describe(files[:LISTED], spec)])
    (_preview if chosen.dry_run else _seal)(chosen, files, spec, declared)


def _seal(chosen: Settings, files: list[Path], spec: IngestSpec, declared: Declaration) -> None:
    with render.progress(chosen, "sealing") as bar:
        made = ingest_flow(
            chosen.home(), files, spec, declared, chosen.operator(),
            lambda n: bar.update(n, 0, f"{n} records"), _list(chosen),
        )  # fmt: skip
    render.result(chosen, "data.ingest", _ingested_document(*made), _ingested_lines(*made))


def _preview(chosen: Settings, files: list[Path], spec: IngestSpec, declared: Declaration) -> None:
    """Say how files would be read and which rows would be rejected. The exact number of units is not said."""
    rejected = try_ingest(chosen.home(), files, spec, declared, _list(chosen))
    unit = f"{spec.unit.kind}{f' by {spec.unit.key}' if spec.unit.key else ''}"
    said = {"files": len(files), "format": spec.reading, "shape": spec.resolved_shape, "unit": unit}
    document = {"dry_run": True, **said, "declared_units": declared.units, "rejected": _places(rejected)}
    parts = {part.name: part.units for part, _ in divide(declared)}
    if declared.held_out:
        document["datasets"] = parts
        said["declared units"] = ", ".join(f"{name} {units}" for name, units in parts.items())
    lines = [f"the declared {declared.units} units fit; {len(rejected)} rows would be rejected; nothing was sealed"]
    render.result(chosen, "data.ingest", document, [*render.fields(said.items()), *lines])


def _list(chosen: Settings) -> Callable[[BadRow], None]:
    """Say for the first rows that are rejected where they are and why."""
    left = iter(range(LISTED))

    def told(row: BadRow) -> None:
        if (number := next(left, None)) is not None:
            render.note(chosen, f"rejected {row}")
            render.notes(chosen, ["more rejected rows are listed by --json"] if number == LISTED - 1 else [])

    return told


def _places(rejected: Iterable[BadRow]) -> list[dict[str, Any]]:
    return [{"file": r.file, "line": r.line, "offset": r.offset, "reason": r.reason} for r in rejected]


def _ingested_document(made: Ingested, *held_out: Ingested) -> dict[str, Any]:
    document = {**_document(made.dataset), "rejected": _places(made.rejected)}
    for part in held_out:
        document["held_out"] = _document(part.dataset)
    return document


def _ingested_lines(made: Ingested, *held_out: Ingested) -> list[str]:
    lines = [f"sealed as {made.dataset.id} ({made.dataset.name}); {len(made.rejected)} rows rejected"]
    for part in held_out:
        row = part.dataset
        lines.append(
            f"held out as {row.id} ({row.name}) for evaluation; about {row.declared_units} units by declaration"
        )
    for part in (made, *held_out):
        if part.overlaps:
            shared = f"{part.dataset.name} shares units of privacy with {', '.join(part.overlaps)}"
            lines.append(f"{shared}: what they spent counts here too")
    return [*lines, "the original files are where they were: remove them if the sealed copy is to be the only one"]


@app.command("list")
def list_(context: typer.Context) -> None:
    """List the datasets."""
    chosen = settings.of(context)
    with chosen.home().rows() as catalog:
        rows = catalog.datasets.list()
    head = ("id", "name", "class", "purpose", "unit", "declared", "state")
    cells = [(r.id, r.name, r.class_, r.purpose, r.unit_kind, r.declared_units, r.state) for r in rows]
    lines = render.table(head, cells) if rows else ["no datasets yet"]
    render.result(chosen, "data.list", {"datasets": [_document(row) for row in rows]}, lines)


@app.command()
def show(
    context: typer.Context,
    dataset: Annotated[str, typer.Argument(help="Name or id.", autocompletion=completing.datasets)],
) -> None:
    """Show one dataset's public facts. Its content is never shown."""
    chosen = settings.of(context)
    with chosen.home().rows() as catalog:
        document = _document(find_dataset(catalog, dataset))
    render.result(chosen, "data.show", document, render.fields(document.items()))


@app.command()
def retire(
    context: typer.Context,
    dataset: Annotated[str, typer.Argument(help="Name or id.", autocompletion=completing.datasets)],
) -> None:
    """Let no new run or evaluation use a dataset, for good. Open runs go on; what was spent stays charged.

    The sealed data stay where they are, and `data verify` still checks them.
    """
    chosen = settings.of(context)
    found = preview_retiring(chosen.home(), dataset)
    if not chosen.dry_run:
        chosen.confirm(f"Retire dataset {found.dataset.name} ({found.dataset.id}) for good?")
        found = retire_data(chosen.home(), dataset, chosen.operator())
    row, said = found.dataset, "would be retired" if chosen.dry_run else "is retired"
    lines = [f"dataset {row.name} ({row.id}) {said}: no new run or evaluation may use it"]
    lines += [f"run {run} is open and goes on; `appliance train abort {run}` settles it" for run in found.open_runs]
    document = {**_document(row), "open_runs": list(found.open_runs)}
    render.result(chosen, "data.retire", document | ({"dry_run": True} if chosen.dry_run else {}), lines)


@app.command()
def verify(
    context: typer.Context,
    dataset: Annotated[
        str | None, typer.Argument(help="Name or id; all if omitted.", autocompletion=completing.datasets)
    ] = None,
) -> None:
    """Compare the sealed objects with their digests in the ledger; works while the store is sealed."""
    chosen = settings.of(context)
    rows = verify_data(chosen.home(), dataset)
    lines = [f"{row.name}: {row.chunks} chunks intact" for row in rows] or ["no datasets yet"]
    render.result(chosen, "data.verify", {"intact": [row.id for row in rows]}, lines)


def _document(row: DatasetRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "name": row.name,
        "class": row.class_,
        "purpose": row.purpose,
        "unit_kind": row.unit_kind,
        "unit_key": row.unit_key,
        "max_records": row.max_records,
        "declared_units": row.declared_units,
        "format": row.format.partition(":")[0],
        "split": row.format.partition(":")[2] or None,
        "state": row.state,
        "object_blake3": row.object_blake3,
        "object_bytes": row.object_bytes,
        "source": row.source,
    }
