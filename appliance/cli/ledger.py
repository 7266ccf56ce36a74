"""`appliance ledger`: log, show, prove, verify, head, sign, witness, export, erase, upgrade, relocate."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from appliance.cli import render, settings, verification
from appliance.cli.settings import Settings
from appliance.errors import UsageError
from appliance.flows import ledger as flow
from appliance.flows.home import fingerprint as fingerprint_of
from appliance.flows.ledger import Wanted
from appliance.flows.relocate import Move
from appliance.flows.relocate import relocate as relocate_flow
from appliance.flows.verify import VerifyOptions
from appliance.flows.verify import verify as verify_flow
from appliance.ledger.entries import Entry

app = typer.Typer()
witness = typer.Typer(name="witness", help="Let somebody elsewhere cosign tree heads.", no_args_is_help=True)
app.add_typer(witness)
TIMES = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%SZ"]
_LARGEST = (1 << 63) - 1  # that a database counts
Index = Annotated[int, typer.Argument(min=0, max=_LARGEST, help="Index of the entry.")]


@app.command()
def log(
    context: typer.Context,
    type_: Annotated[
        str | None, typer.Option("--type", help="Only entries of this type, for example run.settled.")
    ] = None,
    subject: Annotated[str | None, typer.Option(help="Only entries about this dataset, model or run.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Only entries that state this dataset id.")] = None,
    run: Annotated[str | None, typer.Option(help="Only entries that state this run id.")] = None,
    actor: Annotated[str | None, typer.Option("--by", help="Only entries by this pseudonym.")] = None,
    since: Annotated[datetime | None, typer.Option(help="Only entries from this time (UTC) on.", formats=TIMES)] = None,
    until: Annotated[datetime | None, typer.Option(help="Only entries up to this time (UTC).", formats=TIMES)] = None,
    last: Annotated[int | None, typer.Option(min=1, help="Only the last so many.")] = None,
) -> None:
    """List entries, oldest first."""
    chosen = settings.of(context)
    facts = {name: value for name, value in (("dataset_id", dataset), ("run_id", run)) if value is not None}
    wanted = Wanted(
        type=type_, subject=subject, actor=actor, since=_utc(since), until=_utc(until), last=last, facts=facts
    )
    entries = flow.log(chosen.home(), wanted)
    document = {"entries": [{"index": e.index, "leaf": e.leaf, "body": e.body} for e in entries]}
    render.result(chosen, "ledger.log", document, _table(entries))


def _table(entries: list[Entry]) -> list[str]:
    head = ("index", "time", "type", "actor", "about", "body")
    cells = [
        (e.index, e.leaf["time"], e.leaf["type"], e.leaf["actor"], e.leaf.get("subject") or "-", e.body or "-")
        for e in entries
    ]
    return render.table(head, cells) if cells else ["no entry matches"]


@app.command()
def show(context: typer.Context, index: Index) -> None:
    """Show one entry: its leaf, and its sealed body where the store is unsealed."""
    chosen = settings.of(context)
    entry, body = flow.show(chosen.home(), index)
    document = {"index": index, "leaf": entry.leaf, "body_verdict": entry.body, "body": body}
    lines = [*_as_json(entry.leaf), f"body: {entry.body}"]
    if body is not None:
        lines += _as_json(body)
    render.result(chosen, "ledger.show", document, lines)


def _as_json(value: object) -> list[str]:
    return json.dumps(value, indent=2, ensure_ascii=False).split("\n")


@app.command()
def prove(
    context: typer.Context,
    index: Annotated[int | None, typer.Argument(min=0, max=_LARGEST, help="Index of the entry.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the proof here, and the leaf beside it as FILE.leaf.")] = None,
    old_size: Annotated[
        int | None,
        typer.Option("--from", min=1, help="Prove instead that the log continues its first so many entries."),
    ] = None,
) -> None:
    """Prove that an entry is in the newest signed tree head (C2SP), or that this head continues an earlier one."""
    chosen = settings.of(context)
    if index is not None and old_size is None:
        _prove_entry(chosen, index, out)
    elif old_size is not None and index is None:
        _prove_consistency(chosen, old_size, out)
    else:
        raise UsageError("name either the index of an entry or --from SIZE")


def _prove_entry(chosen: Settings, index: int, out: Path | None) -> None:
    proof, leaf = flow.prove(chosen.home(), index)
    if out is not None:
        out.write_text(proof)
        out.with_name(out.name + ".leaf").write_bytes(leaf)
    document = {"index": index, "proof": proof, "leaf": leaf.decode()}
    render.result(chosen, "ledger.prove", document, render.document_lines(proof))


def _prove_consistency(chosen: Settings, old_size: int, out: Path | None) -> None:
    proof, note = flow.prove_consistency(chosen.home(), old_size)
    if out is not None:
        out.write_text(proof)
        out.with_name(out.name + ".head").write_text(note)
    document = {"old_size": old_size, "proof": proof, "note": note}
    render.result(chosen, "ledger.prove", document, [*render.document_lines(proof), "", *render.document_lines(note)])


@app.command()
def verify(
    context: typer.Context,
    fingerprint: Annotated[
        str, typer.Option(help="The fingerprint that `init` or `key rotate` printed: the ledger must lead from it.")
    ] = "",
    deep: Annotated[bool, typer.Option("--deep", help="Open the sealed bodies too; needs an unsealed store.")] = False,
    head: Annotated[
        list[Path] | None, typer.Option(help="A signed tree head kept elsewhere: the ledger must continue it.")
    ] = None,
    witness_keys: Annotated[
        Path | None, typer.Option(help="Keys of the witnesses you trust; default: HOME/keys/witnesses.txt.")
    ] = None,
    require_witness: Annotated[
        bool, typer.Option("--require-witness", help="Fail while there are entries that no witness saw.")
    ] = False,
) -> None:
    """Recompute every leaf, tree head and row, and compare with the signed and anchored heads. Works sealed."""
    chosen = settings.of(context)
    options = VerifyOptions(pinned=fingerprint, heads=tuple(head or ()), witnesses=witness_keys, body_keys=deep)
    with render.progress(chosen, "verifying") as bar:
        done = verify_flow(chosen.home(), lambda n, total: bar.update(n, total, "entries"), options)
    document = verification.document(done, pinned=bool(fingerprint))
    render.result(chosen, "ledger.verify", document, verification.lines(done, pinned=bool(fingerprint)))
    verification.require(done.verification, witnessed=require_witness)


@app.command()
def sign(context: typer.Context) -> None:
    """Sign and anchor the log's end now; every verb that spends or releases does so by itself."""
    chosen = settings.writing(context)
    signed = flow.sign(chosen.home())
    document = {"size": signed.size, "root": signed.root.hex(), "note": signed.note}
    render.result(chosen, "ledger.sign", document, [f"signed and anchored {signed.size} entries"])


@witness.command("export")
def witness_export(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="File for the witness: the body of a C2SP add-checkpoint request.")],
    old_size: Annotated[
        int | None,
        typer.Option("--from", min=0, max=_LARGEST, help="Size the witness knows; default: the last one it cosigned."),
    ] = None,
) -> None:
    """Write what a witness is asked to cosign: the newest tree head and a proof that it continues the last one."""
    chosen = settings.writing(context)
    body = flow.witness_request(chosen.home(), old_size)
    out.write_text(body)
    said = [f"wrote {out}; bring the answer back with `appliance ledger witness import FILE`"]
    render.result(chosen, "ledger.witness.export", {"file": str(out), "request": body}, said)


@witness.command("import")
def witness_import(
    context: typer.Context, answer: Annotated[Path, typer.Argument(help="File of the cosignature lines.")]
) -> None:
    """Take a witness's answer in. Its key must stand in HOME/keys/witnesses.txt."""
    chosen = settings.writing(context)
    added = flow.add_cosignatures(chosen.home(), answer)
    document = {"cosigned": [{"size": c.size, "witness": c.witness, "time": c.time} for c in added]}
    lines = [f"{c.witness} cosigned {c.size} entries at {verification.time_text(c.time)}" for c in added]
    render.result(chosen, "ledger.witness.import", document, lines)


@app.command()
def export(context: typer.Context, directory: Annotated[Path, typer.Argument(help="New directory to write.")]) -> None:
    """Copy the log for auditors: leaves, tiles, signed head, keys (C2SP tlog-tiles). No bodies, no business rows."""
    chosen = settings.writing(context)
    signed, files = flow.export(chosen.home(), directory)
    document = {"directory": str(directory), "size": signed.size, "root": signed.root.hex(), "files": files}
    render.result(chosen, "ledger.export", document, [f"wrote {signed.size} entries in {files} files to {directory}"])


@app.command()
def erase(
    context: typer.Context,
    index: Index,
    db_eraser: Annotated[str, typer.Option(help="The database as the role that may erase; not kept.")] = "",
) -> None:
    """Erase the sealed body (name and reason) of an entry; a new entry says so first."""
    chosen = settings.of(context)
    entry, _ = flow.show(chosen.home(), index)
    if chosen.dry_run:
        _preview_erasing(chosen, index, entry)
        return
    chosen.confirm(f"Erase name and reason of entry {index} ({entry.leaf['type']}) for ever?")
    said = flow.erase(chosen.home(), chosen.operator(), index, db_eraser)
    lines = [
        f"erased the body of entry {index}; entry {said} says so",
        "verdict: unlinked. Remnants in the database's write-ahead log and in backups can still be opened with the key",
    ]
    render.result(chosen, "ledger.erase", {"index": index, "entry": said, "verdict": "unlinked"}, lines)


def _preview_erasing(chosen: Settings, index: int, entry: Entry) -> None:
    document = {"dry_run": True, "index": index, "type": entry.leaf["type"], "body_verdict": entry.body}
    lines = [f"would erase the body of entry {index}, {entry.leaf['type']} of {entry.leaf['time']}; it is {entry.body}"]
    render.result(chosen, "ledger.erase", document, lines)


@app.command()
def upgrade(
    context: typer.Context,
    db_owner: Annotated[str, typer.Option(help="The database as the role that owns the tables; not kept.")] = "",
    db_eraser: Annotated[str, typer.Option(help="The database as the role that may erase; not kept.")] = "",
) -> None:
    """Bring the database to this release's tables. Needed where another role owns them; else any verb does it."""
    chosen = settings.writing(context)
    size = flow.upgrade(chosen.home(), db_owner, db_eraser)
    render.result(chosen, "ledger.upgrade", {"size": size}, [f"the database is up to date; {size} entries"])


@app.command()
def relocate(
    context: typer.Context,
    db: Annotated[str | None, typer.Option(help="Database URL; bring the database there first.")] = None,
    anchor: Annotated[
        Path | None, typer.Option(help="Directory on another volume for the anchor; it is copied.")
    ] = None,
    epoch_keys: Annotated[
        Path | None, typer.Option(help="Directory of the key-encryption keys; bring them there first.")
    ] = None,
) -> None:
    """State in the ledger that database, anchor or epoch keys lie elsewhere from now on, and write home.json."""
    chosen = settings.writing(context)
    move = Move(database_url=db, anchor_dir=anchor, epoch_keys=epoch_keys)
    facts = relocate_flow(chosen.home(), chosen.operator(), move).facts()
    render.result(chosen, "ledger.relocate", facts, render.fields(facts.items()))


@app.command()
def head(context: typer.Context) -> None:
    """Print the newest signed tree head (a C2SP checkpoint) and the keys that check it."""
    chosen = settings.of(context)
    note, keys = flow.head(chosen.home())
    printed = fingerprint_of(keys)
    document = {"note": note, "keys": keys, "fingerprint": printed}
    lines = [*render.document_lines(note), "", "keys to pin:", *keys, f"fingerprint {printed}"]
    render.result(chosen, "ledger.head", document, lines)


def _utc(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.replace(tzinfo=UTC)
