"""The way a user goes, with the real command line: from `init` to a bundle that somebody else verifies.

`python bench/journey.py --model DIR [--device cuda|cpu] [--quantize nf4|int8] [--tokens N] [--without STEP,...]`
runs every step as a process of its own in a fresh home, training in the sandboxed worker on the device, and prints what
became of each. The records are made up. After a step that failed the others are "not run".
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PATIENCE_S = 1200
RECORDS = 600
COLUMNS = ("--prompt", "{question}", "--completion", "{answer}")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the journey trains: a model directory, the device, and what of the run file is not the default."""

    model: Path
    device: str
    quantize: str = "none"
    max_tokens: int = 64
    physical_tokens: int | None = None
    without: tuple[str, ...] = ()


class Failed(Exception):
    """Why a step did not end well."""


@dataclass
class Journey:
    """A home in which the steps are taken, one after the other."""

    wanted: Wanted
    work: Path
    home: Path
    known: dict[str, Any] = field(default_factory=dict)

    def steps(self) -> dict[str, Callable[[], str]]:
        """Every step by name; what it returns says what was seen."""
        every: dict[str, Callable[[], str]] = {
            "user_init": self.init,
            "user_unlock": self.unlock,
            "user_watermark_keygen": self.keygen,
            "user_model_import": self.import_model,
            "user_data_ingest": self.ingest,
            "user_train_plan": self.plan,
            "user_train_start": self.train,
            "user_watermark_embed": self.embed,
            "user_evaluate": self.evaluate,
            "user_export_bundle": self.bundle,
            "user_report_build": self.report,
            "user_bundle_verified": self.verified,
            "user_ledger_verify": self.ledger,
        }
        return {name: step for name, step in every.items() if name not in self.wanted.without}

    def init(self) -> str:
        (self.work / "passphrase").touch(mode=0o600)
        (self.work / "passphrase").write_text("a passphrase for an examination\n")
        self.known["fingerprint"] = self.run("init", "--policy", "default")["fingerprint"]
        return "policy default"

    def unlock(self) -> str:
        return str(self.run("key", "unlock")["state"])

    def keygen(self) -> str:
        return str(self.run("watermark", "keygen")["key"])

    def import_model(self) -> str:
        made = self.run("model", "import", str(self.wanted.model), "--name", "model")
        return f"{made['architecture']}, {made['parameters']} parameters"

    def ingest(self) -> str:
        for name, purpose in (("notes", "training"), ("others", "evaluation")):
            path = self.work / f"{name}.csv"
            path.write_text(records(name))
            declared = ("--name", name, "--units", str(RECORDS), "--purpose", purpose)
            self.run("data", "ingest", str(path), *declared, *COLUMNS)
        return f"{RECORDS} records to train on, {RECORDS} held out"

    def plan(self) -> str:
        out, wanted = self.work / "run.yaml", self.wanted
        asked = ("--epsilon", "8", "--steps", "3", "--max-tokens", str(wanted.max_tokens), "--device", wanted.device)
        self.run("train", "plan", "notes", "model", *asked, "--out", str(out))
        text = out.read_text()
        out.write_text(text.replace("quantize_base: none", f"quantize_base: {wanted.quantize}"))
        return f"3 steps at epsilon 8, base {wanted.quantize}"

    def train(self) -> str:
        tokens = self.wanted.physical_tokens
        options = ("--physical-tokens", str(tokens)) if tokens else ()
        started = ("train", "start", str(self.work / "run.yaml"), "--device", self.wanted.device, *options)
        done = self.run(*started)
        self.known["run"] = done["run"]
        job = json.loads((self.home / "runs" / done["run"] / "job.json").read_text())
        if job["engine"]["device"] != self.wanted.device or done["state"] != "finished":
            raise Failed(f"the run is {done['state']} on {job['engine']['device']}")
        isolation = self.facts("run.settled")["isolation"]
        return f"{done['charged_attempts']} steps on {self.wanted.device}, network {isolation['network']}"

    def embed(self) -> str:
        marked = self.run("watermark", "embed", self.known["run"])
        return f"score {marked['score']} on {marked['modules']} layers"

    def evaluate(self) -> str:
        done = self.run("evaluate", "run", self.known["run"], "--dataset", "others", "--public-tokens", "2000")
        return ", ".join(f"{one['name']} {one['gain_nat']} nat" for one in done["comparisons"])

    def bundle(self) -> str:
        made = self.run("export", "bundle", self.known["run"], "--out", str(self.work / "bundle"))
        return f"{made['files']} files"

    def report(self) -> str:
        self.run("report", "build", self.known["run"], "--out", str(self.work / "report"))
        return f"{(self.work / 'report' / 'report.html').stat().st_size} bytes"

    def verified(self) -> str:
        """Bundle and report by the verifier that lies in them, with nothing of the appliance but the fingerprint."""
        for name in (name for name in ("bundle", "report") if (self.work / name).exists()):
            command = [sys.executable, "-I", "verify.py", "--trusted-key", self.known["fingerprint"]]
            done = subprocess.run(command, cwd=self.work / name, env={}, capture_output=True, text=True, check=False)
            if done.returncode:
                raise Failed(f"verify.py says {done.returncode} of the {name}: {last_line(done.stdout + done.stderr)}")
        return "by verify.py alone"

    def ledger(self) -> str:
        return f"{self.run('ledger', 'verify')['entries']} entries"

    def facts(self, type_: str) -> dict[str, Any]:
        """Of the newest entry of a type."""
        found: dict[str, Any] = self.run("ledger", "log", "--type", type_)["entries"][-1]["leaf"]["facts"]
        return found

    def run(self, *words: str) -> dict[str, Any]:
        """The document of one command; `Failed` with its own words if it ends badly."""
        command = [sys.executable, "-I", "-m", "appliance", "--home", str(self.home), "--json", *words]
        environment = {**os.environ, "APPLIANCE_PASSPHRASE_FILE": str(self.work / "passphrase")}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
        if done.returncode:
            raise Failed(f"exit status {done.returncode}: {last_line(done.stderr)}")
        made: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return made


def last_line(text: str) -> str:
    """What an error says, without the progress before it."""
    lines = [line for line in text.splitlines() if line.strip()]
    said = [line for line in lines if line.startswith("appliance: ")] or lines[-1:]
    return " ".join(said)[:400]


def records(name: str) -> str:
    """Made-up notes as CSV, other ones for each name."""
    lines = [f"how is {name} number {n}?,number {n} of {name} feels well today" for n in range(RECORDS)]
    return "\n".join(["question,answer", *lines]) + "\n"


def travel(journey: Journey) -> Iterator[tuple[str, str, str]]:
    """(step, state, detail) of every step as soon as it is over; the store is sealed again at the end."""
    broken = ""
    try:
        for name, step in journey.steps().items():
            if broken:
                yield name, "not run", f"{broken} failed"
                continue
            began = time.monotonic()
            try:
                yield name, "passed", f"{step()} ({time.monotonic() - began:.1f} s)"
            except (Failed, KeyError, OSError, ValueError, subprocess.TimeoutExpired) as failure:
                broken = name
                yield name, "failed", f"{failure} ({time.monotonic() - began:.1f} s)"
    finally:
        lock = [sys.executable, "-I", "-m", "appliance", "--home", str(journey.home), "--quiet", "key", "lock"]
        subprocess.run(lock, capture_output=True, check=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a model directory with safetensors")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--quantize", default="none", choices=("none", "nf4", "int8"))
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--tokens", type=int, help="tokens computed at once")
    parser.add_argument("--without", default="", help="steps to leave out, with commas")
    parser.add_argument("--work", type=Path, help="where the home is made; by default a directory that is removed")
    options = parser.parse_args()
    wanted = Wanted(
        model=options.model, device=options.device, quantize=options.quantize, max_tokens=options.max_tokens,
        physical_tokens=options.tokens, without=tuple(options.without.split(",")),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        states = []
        for name, state, detail in travel(Journey(wanted, work, work / "home")):
            states.append(state)
            print(f"{state:8}  {name}: {detail}", flush=True)
    return 0 if set(states) == {"passed"} else 1


if __name__ == "__main__":
    sys.exit(main())
