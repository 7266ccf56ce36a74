"""`appliance ledger`: log, show, prove, verify, head."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from appliance.cli import render, settings
from appliance.errors import IntegrityError

app = typer.Typer(name="ledger", help="The tamper-evident log: log, show, prove, verify, head.", no_args_is_help=True)
TIMES = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%SZ"]
Index = Annotated[int, typer.Argument(min=0, help="Index of the entry.")]


@app.command()
def log(
    context: typer.Context,
    type_: Annotated[
        str | None, typer.Option("--type", help="Only entries of this type, for example run.settled.")
    ] = None,
    subject: Annotated[str | None, typer.Option(help="Only entries about this dataset, model or run.")] = None,
    actor: Annotated[str | None, typer.Option("--by", help="Only entries by this pseudonym.")] = None,
    since: Annotated[datetime | None, typer.Option(help="Only entries from this time (UTC) on.", formats=TIMES)] = None,
    until: Annotated[datetime | None, typer.Option(help="Only entries up to this time (UTC).", formats=TIMES)] = None,
    last: Annotated[int | None, typer.Option(min=1, help="Only the last so many.")] = None,
) -> None:
    """List entries, oldest first."""
    chosen = settings.of(context)
    home = chosen.home()
    with home.ledger(writable=False) as ledger:
        found = ledger.entries(type_, subject, actor, _utc(since), _utc(until), limit=last, newest_first=True)
        entries = list(found)[::-1]
    head = ("index", "time", "type", "actor", "about", "body")
    cells = [
        (e.index, e.leaf["time"], e.leaf["type"], e.leaf["actor"], e.leaf.get("subject") or "-", e.body or "-")
        for e in entries
    ]
    document = {"entries": [{"index": e.index, "leaf": e.leaf, "body": e.body} for e in entries]}
    render.result(chosen, "ledger.log", document, render.table(head, cells) if cells else ["no entry matches"])


@app.command()
def show(context: typer.Context, index: Index) -> None:
    """Show one entry: its leaf, and its sealed body where the store is unsealed."""
    from appliance.flows import ledger as flow

    chosen = settings.of(context)
    entry, body = flow.show(chosen.home(), index)
    document = {"index": index, "leaf": entry.leaf, "body_verdict": entry.body, "body": body}
    lines = [json.dumps(entry.leaf, indent=2, ensure_ascii=False), f"body: {entry.body}"]
    if body is not None:
        lines.append(json.dumps(body, indent=2, ensure_ascii=False))
    render.result(chosen, "ledger.show", document, lines)


@app.command()
def prove(
    context: typer.Context,
    index: Index,
    out: Annotated[Path | None, typer.Option(help="Write the proof here, and the leaf beside it as FILE.leaf.")] = None,
) -> None:
    """Make a C2SP inclusion proof of one entry under the newest signed tree head."""
    from appliance.flows import ledger as flow

    chosen = settings.of(context)
    proof, leaf = flow.prove(chosen.home(), index)
    if out is not None:
        out.write_text(proof)
        out.with_name(out.name + ".leaf").write_bytes(leaf)
    document = {"index": index, "proof": proof, "leaf": leaf.decode()}
    render.result(chosen, "ledger.prove", document, [proof.rstrip()])


@app.command()
def verify(
    context: typer.Context,
    fingerprint: Annotated[
        str, typer.Option(help="The fingerprint that `init` printed: the ledger must be signed by these keys.")
    ] = "",
) -> None:
    """Recompute every leaf, tree head and row, and compare with the signed and anchored heads. Works sealed."""
    from appliance.flows import ledger as flow

    chosen = settings.of(context)
    with render.progress(chosen, "verifying") as bar:
        done = flow.verify(chosen.home(), lambda n, total: bar.update(n, total, "entries"), pinned=fingerprint)
    found = done.verification
    document = {
        "verdict": "tampered" if found.problems else "intact",
        "entries": found.entries,
        "root": found.root,
        "signed_size": found.signed_size,
        "first_bad": found.first_bad,
        "problems": list(found.problems),
        "bodies": found.bodies,
        "anchor_external": done.anchor_external,
        "fingerprint": done.fingerprint,
        "fingerprint_pinned": bool(fingerprint),
    }
    if found.problems:
        render.result(chosen, "ledger.verify", document, [f"problem: {problem}" for problem in found.problems])
        first = "" if found.first_bad is None else f"; the first bad entry is {found.first_bad}"
        raise IntegrityError(f"the ledger was altered{first}", hint="keep a copy as it is, and restore from a backup")
    lines = [
        f"{found.entries} entries intact; root {found.root}",
        f"signed up to {found.signed_size}; bodies: " + ", ".join(f"{n} {v}" for v, n in sorted(found.bodies.items())),
        f"keys: {done.fingerprint}",
        done.exposure,
    ]
    if not fingerprint:
        lines.append("compare the keys with the fingerprint on paper, or give it with --fingerprint")
    render.result(chosen, "ledger.verify", document, lines)


@app.command()
def head(context: typer.Context) -> None:
    """Print the newest signed tree head (a C2SP checkpoint) and the keys that check it."""
    from appliance.flows import home as homes

    chosen = settings.of(context)
    with chosen.home().ledger() as ledger:
        note, keys = ledger.sign().note, ledger.verifier_keys
    printed = homes.fingerprint(keys)
    document = {"note": note, "keys": keys, "fingerprint": printed}
    lines = [note.rstrip(), "", "keys to pin:", *keys, f"fingerprint {printed}"]
    render.result(chosen, "ledger.head", document, lines)


def _utc(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.replace(tzinfo=UTC)
