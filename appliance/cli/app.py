"""The command line's frame: global options, the nouns, and the one place where errors become exit codes."""

from __future__ import annotations

import errno
import itertools
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer
from typer._click.exceptions import ClickException, NoArgsIsHelpError  # typer 0.29 carries its own click

from appliance import __version__
from appliance.cli import mistyped, render, streams
from appliance.cli.lazy import Words
from appliance.cli.settings import Settings
from appliance.errors import ApplianceError, Interrupted, UsageError, WillNotFit
from appliance.isolation import process

app = typer.Typer(
    name="appliance",
    cls=Words,
    help="Fine-tune an open-weights language model on data that must never leave the building, and prove it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"appliance {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    home_dir: Annotated[
        Path | None,
        typer.Option("--home", envvar="APPLIANCE_HOME", help="The appliance's home directory.", show_default=False),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout, all else on stderr.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only.")] = False,
    no_color: Annotated[bool, typer.Option("--no-color", envvar="NO_COLOR", help="No colours.")] = False,
    actor: Annotated[
        str,
        typer.Option(envvar="APPLIANCE_ACTOR", help="Who acts; goes to the ledger, sealed. Default: the login name."),
    ] = "",
    reason: Annotated[str, typer.Option(envvar="APPLIANCE_REASON", help="Why; goes to the ledger, sealed.")] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check, write nothing; refused by verbs that cannot.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Answer yes to questions.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Fine-tune an open-weights language model on data that must never leave the building, and prove it."""
    context.obj = Settings(
        named_root=home_dir,
        json=json,
        quiet=quiet,
        color=not no_color,
        actor=actor,
        reason=reason,
        dry_run=dry_run,
        yes=yes,
    )


def main() -> None:
    """Run the command line and exit with the status that docs/cli.md names. Its memory goes into no core file."""
    process.deny_core_dumps()
    streams.occupy()
    streams.heed_signals()
    sys.exit(streams.finish(run(sys.argv[1:])))


def run(arguments: list[str]) -> int:
    """Run one command; returns its exit status. Never a traceback: the innermost place is named instead."""
    with render.one_document(wanted="--json" in itertools.takewhile(lambda word: word != "--", arguments)):
        return _run(arguments)


_NO_PATH = (errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)


def _run(arguments: list[str]) -> int:
    try:
        _require_utf8(arguments)
        ended: Any = app(args=arguments, prog_name="appliance", standalone_mode=False)
    except ApplianceError as failure:
        return _report(failure)
    except NoArgsIsHelpError as shown:
        render.error(UsageError("a verb is missing", hint="choose one of those above"), shown.format_message() + "\n")
        return UsageError.exit_status
    except ClickException as wrong:
        return _report(mistyped.explain(wrong, arguments))
    except (KeyboardInterrupt, typer.Abort):
        return _report(_interrupted())
    except (BrokenPipeError, SystemExit):  # the latter is how click ends where nobody reads any more
        return 0
    except OSError as obstacle:
        return _report(_obstacle(obstacle, arguments))
    except Exception as bug:  # noqa: BLE001 - the one place: a bug is reported without its message, which may hold text
        return _report(_bug(bug))
    if ended == Interrupted.exit_status:  # typer catches Ctrl-C, and returns a status where it does not exit itself
        return _report(_interrupted())
    return ended or 0


def _interrupted() -> Interrupted:
    return Interrupted("interrupted", hint="what was written before is safe; type the same again")


def _require_utf8(arguments: list[str]) -> None:
    """Raise `UsageError` for words that are not UTF-8. Python holds their bytes as halves of surrogate pairs."""
    told = {name: value for name, value in os.environ.items() if name.startswith("APPLIANCE_")}
    for where, text in (*(("an argument", text) for text in arguments), *told.items()):
        try:
            text.encode()
        except UnicodeEncodeError:
            hint = "give UTF-8; a file with another name can be renamed"
            raise UsageError(f"not UTF-8: {text}", hint=hint, where=where) from None


def _report(failure: ApplianceError) -> int:
    render.error(failure)
    return failure.exit_status


def _obstacle(error: OSError, arguments: list[str]) -> ApplianceError:
    """Explain what the operating system refuses to anybody: room, what belongs to another user, a path that is none."""
    where, said = str(error.filename or ""), (error.strerror or "").lower()
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return WillNotFit(f"writing failed: {said}", hint="make room, then type the same again", where=where)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        hint = f"this process runs as user {os.geteuid()}; a home is used by the user who made it"
        return UsageError(f"the operating system refuses: {said}", hint=hint, where=where)
    if error.errno in _NO_PATH and _is_named(error, arguments):
        return UsageError(f"the operating system refuses: {said}", hint="name a path that can be there", where=where)
    return _bug(error)


def _is_named(error: OSError, arguments: list[str]) -> bool:
    """Tell whether a path is one that the user gave, beside one or on the way to it, or in what is no directory."""
    told = [text.rpartition("=")[2] for text in arguments if "=" in text or not text.startswith("-")]
    told += [value for name, value in os.environ.items() if name.startswith("APPLIANCE_")]
    found = os.path.abspath(os.fsdecode(error.filename or ""))
    for path in map(os.path.abspath, told if error.filename else []):
        inside = error.errno == errno.ENOTDIR and found.startswith(f"{path}/")
        if inside or path.startswith(f"{found}/") or os.path.dirname(path) == os.path.dirname(found):
            return True
    return False


def _bug(bug: Exception) -> ApplianceError:
    frame = traceback.extract_tb(bug.__traceback__)[-1]
    place = f"{Path(frame.filename).name}:{frame.lineno}"
    return ApplianceError(f"internal error, {type(bug).__name__} at {place}", hint="please report this place")
