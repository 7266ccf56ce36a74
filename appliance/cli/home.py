"""`appliance init`, `status`, `doctor`: verbs without a noun."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from appliance.cli import completing, render, settings
from appliance.cli.options import PassphraseFile
from appliance.cli.passphrase import passphrase
from appliance.errors import IsolationViolated
from appliance.events.machine import MachineAttested
from appliance.flows import acceptance
from appliance.flows import init as flow
from appliance.flows.doctor import examine
from appliance.flows.init import Initialised, Places
from appliance.flows.policy import load
from appliance.flows.status import status as status_flow


def init(
    context: typer.Context,
    policy: Annotated[
        str, typer.Option(help="A policy file, or: default, demo, health, finance.", autocompletion=completing.policies)
    ] = "default",
    anchor: Annotated[Path | None, typer.Option(help="Directory on another volume for the anchor.")] = None,
    epoch_keys: Annotated[
        Path | None, typer.Option(help="Directory on another device for the key-encryption keys.")
    ] = None,
    db: Annotated[
        str, typer.Option(help="Database URL (postgresql+psycopg://ROLE@/NAME?host=DIR); default: SQLite in the home.")
    ] = "",
    db_owner: Annotated[str, typer.Option(help="The same database as the role that owns the tables; not kept.")] = "",
    db_eraser: Annotated[str, typer.Option(help="The same database as the role that may erase; not kept.")] = "",
    origin: Annotated[str, typer.Option(help="Name of the log in its tree heads; default: random.")] = "",
    passphrase_file: PassphraseFile = None,
) -> None:
    """Create a home: keys, database, signing keys, active policy. Prints the fingerprint to hand over on paper."""
    chosen = settings.of(context)
    rules = load(policy)
    if chosen.dry_run:
        render.result(chosen, "init", {"dry_run": True, "home": str(chosen.root)}, [f"would make {chosen.root}"])
        return
    places = Places(
        database_url=db, database_owner=db_owner, database_eraser=db_eraser, anchor_dir=anchor,
        epoch_keys=epoch_keys, origin=origin,
    )  # fmt: skip
    with passphrase(passphrase_file, new=True) as secret:
        made = flow.init(chosen.root, rules, secret, chosen.operator(), places)
    render.result(chosen, "init", _document(made), _lines(made, places))


def _document(made: Initialised) -> dict[str, Any]:
    return {
        "home": str(made.home.root),
        "policy": made.policy,
        "fingerprint": made.fingerprint,
        "keys": made.verifier_keys,
        "verifier_sha256": made.verifier_sha256,
    }


def _lines(made: Initialised, places: Places) -> list[str]:
    lines = [
        f"made {made.home.root} under policy {made.policy}",
        "hand this fingerprint of the ledger's keys to your auditors, on paper (`ledger head` prints the keys):",
        f"  {made.fingerprint}",
        "and the SHA-256 of the verifier that lies in every bundle and report as verify.py:",
        f"  {made.verifier_sha256}",
        "the passphrase cannot be recovered; without it the data stay sealed for ever",
    ]
    if places.database_url and not places.database_owner:
        lines.append("the database role owns its tables: whoever takes it over can drop their guards (--db-owner)")
    if not made.home.anchor_is_external:
        lines.append("the anchor lies inside the home: a rollback of the whole home is not detectable (--anchor)")
    return lines


def status(context: typer.Context) -> None:
    """Say in what state the appliance is: seal, ledger, anchor, budgets, runs, disk."""
    chosen = settings.of(context)
    found = status_flow(chosen.home())
    render.result(chosen, "status", found.document(), render.fields(found.fields()))


def doctor(
    context: typer.Context,
    without_sandbox: Annotated[
        bool, typer.Option("--control", help="Run the planted leakers without the sandbox, to see them leak.")
    ] = False,
    record: Annotated[
        Path | None,
        typer.Option(
            help="Instead, write what `make accept-gpu` or an attestation found, in this file, into the ledger."
        ),
    ] = None,
) -> None:
    """Check this machine: plants leakers in a sandboxed process and shows each one caught; devices, disk, libraries."""
    if record is not None:
        return _record(settings.writing(context), record)
    chosen = settings.of(context)
    found = examine(chosen.root, sandboxed=not without_sandbox)
    lines = render.table(("check", "verdict", "detail"), [(c.name, c.verdict, c.detail) for c in found])
    document = {"checks": [{"name": c.name, "verdict": c.verdict, "detail": c.detail} for c in found]}
    render.result(chosen, "doctor", document, lines)
    leaks = [check.name for check in found if check.verdict == "leaked"]
    if leaks and not without_sandbox:
        raise IsolationViolated(f"the sandbox lets through: {', '.join(leaks)}")


def _record(chosen: settings.Settings, document: Path) -> None:
    index, said = acceptance.record(chosen.home(), document, chosen.operator())
    if isinstance(said, MachineAttested):
        verdict = "attested" if said.attested else f"not attested: {', '.join(said.failed)}"
        counted = f"{said.passed} of {said.passed + len(said.failed)} checks passed on {said.host}"
    else:
        verdict = "accepted" if said.accepted else "not accepted"
        passed = sum(check.state == "passed" for check in said.checks)
        counted = f"{passed} of {len(said.checks)} checks passed on {said.hardware}"
    render.result(chosen, "doctor.record", {**said.facts(), "entry": index}, [f"{verdict}: {counted} (entry {index})"])
