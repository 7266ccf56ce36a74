"""`appliance demo`: the commands an admin would type, run one after the other and shown as they are typed."""

from __future__ import annotations

import contextlib
import io
import secrets
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from appliance.cli import render
from appliance.cli import settings as global_options
from appliance.cli.app import run as run_command
from appliance.cli.settings import Settings
from appliance.errors import ApplianceError
from appliance.flows import demo as flow
from appliance.flows.demo import Media
from appliance.ledger.rows import RunRow

MODEL = "smollm2-135m"
PROMPT = "Write a patient's review of {drugName}, taken for {condition}."
COLUMNS = ("--prompt", PROMPT, "--completion", "{review}", "--unescape-html")


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much of the reviews the demo takes, and under which names and class of data they are sealed."""

    training: int
    held_out: int
    name: str
    class_name: str
    plan: tuple[str, ...] = ()
    evaluation: tuple[str, ...] = ()

    @property
    def held_out_name(self) -> str:
        """Name of the dataset that is kept for evaluation."""
        return f"{self.name}-held-out"


FULL = Size(training=600, held_out=379, name="reviews", class_name="default")
QUICK = Size(
    training=150,
    held_out=100,
    name="reviews-quick",
    class_name="quick",
    plan=("--steps", "3", "--max-tokens", "64"),
    evaluation=("--public-tokens", "3000"),
)


class Failed(ApplianceError):
    """A step of the demo was refused; the step printed why."""

    def __init__(self, exit_status: int) -> None:
        super().__init__("the demo stopped at the step above")
        self.exit_status = exit_status  # type: ignore[misc]


def demo(
    context: typer.Context,
    media: Annotated[Path, typer.Option(help="Directory with the demo's two wheels.")] = Path(".media"),
    quick: Annotated[bool, typer.Option("--quick", help="Same steps, fewer records; at most two minutes.")] = False,
) -> None:
    """Run the whole job on a real model and real, public reviews by patients. A second run continues the budget."""
    settings, began, size = global_options.writing(context), time.monotonic(), QUICK if quick else FULL
    step = _Steps(settings)
    unpacked = flow.unpack(media, size.training, size.held_out)
    _open_home(settings, step)
    _bring_in(settings, step, unpacked, size)
    row = _train(settings, step, size)
    handed = _hand_out(settings, step, row)
    _audit(settings, handed)
    step("ledger", "verify")
    lines = _describe_end(settings, flow.describe_end(settings.home(), row), handed, time.monotonic() - began)
    render.result(settings, "demo", _document(settings, row, handed), lines)


def _train(settings: Settings, step: _Steps, size: Size) -> RunRow:
    """Plan, train, mark and evaluate a run."""
    run_file = settings.root.absolute() / f"{size.name}.yaml"
    step("train", "plan", size.name, MODEL, "--epsilon", "8", "--out", str(run_file), *size.plan, globally=("--yes",))
    step("train", "start", str(run_file))
    row = flow.last_run(settings.home())
    step("watermark", "embed", row.id)
    step("evaluate", "run", row.id, "--dataset", size.held_out_name, *size.evaluation)
    return row


def _hand_out(settings: Settings, step: _Steps, row: RunRow) -> Path:
    """Write report and bundle of a run; the directory that holds them."""
    handed = settings.root.absolute().with_name(settings.root.name + ".out") / row.id
    handed.mkdir(parents=True, mode=0o755)
    step("report", "build", row.id, "--out", str(handed / "report"))
    step("export", "bundle", row.id, "--out", str(handed / "bundle"), "--recipient", "demo-auditor")
    return handed


def _document(settings: Settings, row: RunRow, handed: Path) -> dict[str, str | None]:
    return {
        "home": str(settings.root),
        "run": row.id,
        "epsilon": row.epsilon_charged,
        "adapter": row.adapter_sha256,
        "report": str(handed / "report"),
        "bundle": str(handed / "bundle"),
    }


def _open_home(settings: Settings, step: _Steps) -> None:
    """Make the home where there is none, and unseal it."""
    secret = settings.root.absolute().with_name(settings.root.name + ".passphrase")
    if not (settings.root / "home.json").exists():
        _write_secret(secret)
        step("init", "--policy", "demo", "--passphrase-file", str(secret))
    if settings.home().agent().status().state != "unsealed":
        step("key", "unlock", "--passphrase-file", str(secret))


def _bring_in(settings: Settings, step: _Steps, unpacked: Media, size: Size) -> None:
    """Bring in what an earlier demo in the same home has not: watermark key, model, two datasets."""
    known = flow.find_known(settings.home())
    if flow.WATERMARK_KEY not in known:
        step("watermark", "keygen")
    if MODEL not in known:
        step("model", "import", str(unpacked.model), "--name", MODEL)
    common = ("--class", size.class_name, *COLUMNS)
    if size.name not in known:
        named = ("--name", size.name, "--units", str(size.training))
        step("data", "ingest", str(unpacked.training), *named, *common)
    if size.held_out_name not in known:
        held = ("--name", size.held_out_name, "--units", str(size.held_out), "--purpose", "evaluation")
        step("data", "ingest", str(unpacked.held_out), *held, *common)


def _audit(settings: Settings, handed: Path) -> None:
    """Do what an auditor does: a copy of the bundle in another directory, its verifier, the printed fingerprint."""
    command, status, said = flow.audit(settings.home(), handed / "bundle", handed / "auditor")
    render.notes(settings, ["", f"$ {shlex.join(command)}", *render.document_lines(said)])
    if status:
        raise Failed(status)


class _Steps:
    """Runs `appliance ...` in this process, announcing it as it would be typed."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def __call__(self, *words: str, globally: tuple[str, ...] = ()) -> None:
        render.notes(self.settings, ["", f"$ appliance {shlex.join((*globally, *words))}"])
        options = ["--home", str(self.settings.root), *globally, "--reason", "demonstration"]
        options += ["--quiet"] if self.settings.quiet else []
        options += [] if self.settings.color else ["--no-color"]
        beside = io.StringIO() if self.settings.quiet else sys.stderr
        with contextlib.redirect_stdout(beside if self.settings.json or self.settings.quiet else sys.stdout):
            status = run_command([*options, *words])
        if status:
            raise Failed(status)


def _write_secret(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600, exist_ok=True)
    path.write_text(secrets.token_urlsafe(24) + "\n")


def _describe_end(settings: Settings, guarantee: list[str], handed: Path, seconds: float) -> list[str]:
    home = settings.root
    return [
        "",
        f"the demo took {seconds:.0f} s; its home is {home}, its passphrase in {home}.passphrase",
        f"report to read: {handed / 'report' / 'report.html'}",
        f"bundle to hand over: {handed / 'bundle'}",
        *guarantee,
        "",
        "try next:",
        f"  appliance --home {home} status",
        f"  appliance --home {home} budget show",
        f"  appliance --home {home} ledger log",
        f"  appliance --home {home} data verify",
        f"  appliance --home {home} demo      # again: the budget carries on, until it is used up (exit 5)",
        f"  appliance --home {home} key lock",
    ]
