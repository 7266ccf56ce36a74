"""`appliance export`: bundle, verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from appliance.cli import completing, render, settings
from appliance.errors import ApplianceError, IntegrityError, Stale, VerificationIncomplete
from appliance.export import verify as verifier
from appliance.flows.release import bundle as flow
from appliance.flows.release.sealing import Sealed

app = typer.Typer()


@app.command()
def bundle(
    context: typer.Context,
    run: Annotated[
        str, typer.Argument(help="The run's id, or its name if no other has it.", autocompletion=completing.runs)
    ],
    out: Annotated[Path, typer.Option(help="Directory to make; it must not exist.")],
    recipient: Annotated[
        str, typer.Option(help="For whom; an organisation or a pseudonym, it stands in the ledger in clear.")
    ] = "",
) -> None:
    """Write the marked adapter of a finished run with its documents, its proofs and a verifier into a directory."""
    chosen = settings.of(context)
    if chosen.dry_run:
        release = flow.preview(chosen.home(), chosen.run(run), out)
        document = {"dry_run": True, "run": release.run_id, "released_sha256": release.released_sha256}
        render.result(chosen, "export.bundle", document, [f"{release.run_id} may leave; {out} would be made"])
        return
    sealed = flow.bundle(chosen.home(), chosen.run(run), out, recipient, chosen.operator())
    lines = render.fields([("bundle", sealed.manifest.id), ("directory", out), ("ledger entry", sealed.index)])
    lines.append(f"check it on another machine: python3 -I {out}/verify.py --trusted-key FINGERPRINT")
    render.result(chosen, "export.bundle", _document(sealed, out), lines)


def _document(sealed: Sealed, out: Path) -> dict[str, Any]:
    manifest = sealed.manifest
    return {
        "bundle": manifest.id,
        "run": manifest.run_id,
        "path": str(out),
        "manifest_sha256": manifest.sha256(),
        "entry": sealed.index,
        "tree_size": sealed.head.size,
        "files": len(manifest.files),
        "bytes": sum(file.bytes for file in manifest.files),
    }


@app.command()
def verify(
    context: typer.Context,
    directory: Annotated[Path, typer.Argument(help="A bundle or report directory.")],
    trusted_key: Annotated[
        list[str] | None,
        typer.Option(help="File of verifier keys, or the fingerprint that `init` printed; never one from DIRECTORY."),
    ] = None,
    state: Annotated[
        Path | None, typer.Option(help="Remembers tree heads, so that an older or forked one is noticed.")
    ] = None,
) -> None:
    """Check a bundle or a report offline; needs no home. The same code as the `verify.py` in the directory."""
    chosen = settings.of(context)
    seen = flow.verify(directory, trusted_key or [], state)
    render.result(chosen, "export.verify", verifier.document(seen), verifier.report(seen))
    if seen.code:
        raise _failure(seen.code, f"{directory} is {verifier.VERDICTS[seen.code]}")


def _failure(code: int, message: str) -> ApplianceError:
    kinds = (IntegrityError, VerificationIncomplete, Stale)
    return next(kind for kind in kinds if kind.exit_status == code)(message)
