"""Keeps what a release writes: a ledger, a bundle and a report. Run once for a release; what it wrote is never changed.

`python -m tests.vectors.releases.generate DIRECTORY` drives the command line of the checkout it is run in, on a tiny
random model, and writes `home/` (the ledger's database, its anchor and its public keys), `bundle/`, `report/` and
`keys.txt` (the keys to pin). `0.1.0/` was written by commit a8b13ed.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from tests.conftest import _build_llama
from tests.e2e.conftest import Appliance, write_notes, write_passphrase

COLUMNS = ("--prompt", "question", "--completion", "answer")
CURRICULUM = """
curriculum:
  - {name: basics, ratio: 0.4, units: 250, expected_batch_size: 125, where: {field: topic, in: [heart]}}
  - {ratio: 0.6}
"""
KEPT = ("home.json", "ledger.db", "anchor/anchor", "keys/body.pub", "keys/signing/verifier.keys")


def main(directory: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        _live(Path(scratch))
        for name in KEPT:
            (directory / "home" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(scratch) / "home" / name, directory / "home" / name)
        for name in ("bundle", "report"):
            shutil.copytree(Path(scratch) / name, directory / name)
        shutil.copy(directory / "bundle" / "ledger" / "keys.txt", directory / "keys.txt")


def _live(place: Path) -> None:
    """Everything that leaves an entry and takes less than a minute."""
    appliance = Appliance(place / "home")
    write_passphrase(appliance.passphrase)
    _write_media(place)
    appliance("init", "--policy", "default")
    appliance("key", "unlock")
    try:
        _prepare(appliance, place)
        run = _train(appliance, place)
        appliance("export", "bundle", run, "--out", str(place / "early"), expect=4)
        appliance("watermark", "embed", run)
        released = str(appliance.home / "runs" / run / "released")
        appliance("watermark", "detect", released, "--run", run)
        appliance("watermark", "detect", released.replace("released", "adapter"), "--run", run)
        appliance("evaluate", "run", run, "--dataset", "held", "--public-tokens", "300")
        appliance("evaluate", "run", run, "--dataset", "visits", expect=4)
    finally:
        appliance("key", "lock")
    appliance("key", "rotate", "--ledger")
    appliance("export", "bundle", run, "--out", str(place / "bundle"), "--recipient", "ward seven")
    appliance("report", "build", run, "--out", str(place / "report"))


def _write_media(place: Path) -> None:
    (place / "tiny").mkdir()
    _build_llama(place / "tiny")
    lines = ["patient,topic,question,answer"]
    lines += [f"p{i // 3},{('heart', 'lung')[i % 2]},q {i}?,number {i} is well" for i in range(1500)]
    (place / "visits.csv").write_text("\n".join(lines) + "\n")
    write_notes(place / "held.csv")
    (place / "broken.csv").write_text("question\nonly\n")
    (place / "nothing").mkdir()


def _prepare(appliance: Appliance, place: Path) -> None:
    appliance("watermark", "keygen")
    appliance("model", "import", str(place / "nothing"), "--name", "none", expect=None)
    appliance("model", "import", str(place / "tiny"), "--name", "tiny")
    subjects = ("--subject", "patient", "--max-records", "3", "--keep", "topic")
    visits = ("--name", "visits", "--units", "500")
    appliance("data", "ingest", str(place / "broken.csv"), "--name", "broken", "--units", "5", *COLUMNS, expect=None)
    appliance("data", "ingest", str(place / "visits.csv"), *visits, *COLUMNS, *subjects)
    held = ("--name", "held", "--units", "600", "--purpose", "evaluation")
    appliance("data", "ingest", str(place / "held.csv"), *held, *COLUMNS)


def _train(appliance: Appliance, place: Path) -> str:
    """A run that was aborted, one that was refused, and one that finished: its id."""
    small = ("--steps", "5", "--batch", "60", "--max-tokens", "64", "--rank", "2")
    for name, epsilon in (("long", "2"), ("main", "4"), ("greedy", "8")):
        out = place / f"{name}.yaml"
        appliance("train", "plan", "visits", "tiny", "--epsilon", epsilon, "--name", name, "--out", str(out), *small)
    main = place / "main.yaml"
    main.write_text(main.read_text() + CURRICULUM)
    long = appliance.json("train", "start", str(place / "long.yaml"), "--detach")["run"]
    appliance("train", "abort", long)
    run = appliance.json("train", "start", str(main))["run"]
    appliance("train", "start", str(place / "greedy.yaml"), expect=5)
    return str(run)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
