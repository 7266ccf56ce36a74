"""`appliance demo`: the commands an admin would type, run one after the other and shown as they are typed."""

from __future__ import annotations

import secrets
import shlex
import time
from pathlib import Path
from typing import Any

from appliance.cli import render
from appliance.cli.settings import Settings
from appliance.errors import ApplianceError

MODEL = "smollm2-135m"
PROMPT = "Write a patient's review of {drugName}, taken for {condition}."
FULL = {"records": 600, "name": "reviews", "class": "default", "plan": []}
QUICK = {"records": 150, "name": "reviews-quick", "class": "quick", "plan": ["--steps", "3", "--max-tokens", "96"]}


class Failed(ApplianceError):
    """A step of the demo was refused; the step printed why."""

    def __init__(self, exit_status: int) -> None:
        super().__init__("the demo stopped at the step above")
        self.exit_status = exit_status  # type: ignore[misc]


def run(settings: Settings, media: Path, *, quick: bool) -> None:
    """Run every step; skip those that an earlier demo in the same home has done."""
    from appliance.flows import demo

    began = time.monotonic()
    size: dict[str, Any] = QUICK if quick else FULL
    gguf, reviews = demo.unpack(media, size["records"])
    secret = settings.root.absolute().with_name(settings.root.name + ".passphrase")
    step = _Steps(settings)
    if not (settings.root / "home.json").exists():
        _write_secret(secret)
        step("init", "--policy", "demo", "--passphrase-file", str(secret))
    home = settings.home()
    if home.agent().status().state != "unsealed":
        step("key", "unlock", "--passphrase-file", str(secret))
    known = demo.known(home)
    if MODEL not in known:
        step("model", "import", str(gguf), "--name", MODEL)
    if size["name"] not in known:
        columns = ("--prompt", PROMPT, "--completion", "{review}", "--unescape-html")
        named = ("--name", size["name"], "--class", size["class"], "--units", str(size["records"]))
        step("data", "ingest", str(reviews), *named, *columns)
    run_file = settings.root.absolute() / f"{size['name']}.yaml"
    plan = ("train", "plan", size["name"], MODEL, "--epsilon", "8", "--out", str(run_file), *size["plan"])
    step(*plan, globally=("--yes",))
    step("train", "start", str(run_file))
    step("ledger", "verify")
    row = demo.last_run(home)
    document = {
        "home": str(settings.root),
        "run": row.id,
        "epsilon": row.epsilon_charged,
        "adapter": row.adapter_sha256,
    }
    render.result(settings, "demo", document, _closing(settings, demo.closing(home, row), time.monotonic() - began))


class _Steps:
    """Runs `appliance ...` in this process, announcing it as it would be typed."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def __call__(self, *words: str, globally: tuple[str, ...] = ()) -> None:
        from appliance.cli import app

        render.note(self.settings, f"\n$ appliance {shlex.join((*globally, *words))}")
        options = ["--home", str(self.settings.root), *globally, "--reason", "demonstration"]
        options += ["--quiet"] if self.settings.json or self.settings.quiet else []
        options += [] if self.settings.color else ["--no-color"]
        status = app.run([*options, *words])
        if status:
            raise Failed(status)


def _write_secret(path: Path) -> None:
    path.touch(mode=0o600, exist_ok=True)
    path.write_text(secrets.token_urlsafe(24) + "\n")


def _closing(settings: Settings, guarantee: list[str], seconds: float) -> list[str]:
    home = settings.root
    return [
        "",
        f"the demo took {seconds:.0f} s; its home is {home}, its passphrase in {home}.passphrase",
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
