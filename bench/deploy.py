"""The deployment's bars: the tests against real systemd, and what they measured. `--quick` leaves the machine out.

Needs root on Debian for all but `--quick`, about a quarter of an hour.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from figures import Figure, Report, arguments

from deploy.bundle import build, lock
from tests.unit.deploy.test_units import SERVICES, exposure, write

ROOT = Path(__file__).resolve().parents[1]
BARS = {
    "fresh_to_verified_s": ("s", 90.0),
    "second_run_changed": ("tasks", 0.0),
    "egress_leaks": ("leaks", 0.0),
    "attestation_missed": ("mutations", 0.0),
    "attestation_false_alarms": ("alarms", 0.0),
    "upgrade_mixed": ("cuts", 0.0),
    "rollback_s": ("s", 15.0),
}
COUNTS = {
    "attestation_missed": "attestation_mutations",
    "attestation_false_alarms": "attestation_clean_runs",
    "upgrade_mixed": "upgrade_cuts",
}


def bundle_differs() -> Figure:
    """Build the control flavour twice, from the source, into one file each."""
    epoch = int(build._commit_time())
    with tempfile.TemporaryDirectory() as directory:
        key = Path(directory) / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        digests = []
        for name in ("one", "two"):
            place = Path(directory) / name
            wheel = lock.appliance_wheel(place, epoch)
            contents = build.gather("control", ROOT / "build" / "bundle", wheel, epoch)
            release = build.Release(
                version=wheel.name.split("-")[1], flavour="control", sequence=1, min_from=0, epoch=epoch, valid_days=365
            )
            build.assemble(release, contents, key, place / "bundle")
            digests.append(hashlib.sha256((place / "bundle").read_bytes()).hexdigest())
    return Figure(name="bundle_differs", value=float(digests[0] != digests[1]), unit="", bar=0.0, repeats=2)


def exposures() -> list[Figure]:
    with tempfile.TemporaryDirectory() as directory:
        others = max(exposure(write(Path(directory), name)) for name in SERVICES)
        gpu = max(exposure(write(Path(directory), f"appliance-{name}@.service", gpu=True)) for name in ("run", "serve"))
    return [
        Figure(name="exposure_gpu", value=gpu, unit="", bar=1.0),
        Figure(name="exposure_other", value=others, unit="", bar=0.5, note="the worst of four units"),
    ]


def on_a_machine() -> tuple[dict[str, float], str]:
    """Run the tests against real systemd, with full counts; what they measured, and how they ended."""
    with tempfile.NamedTemporaryFile() as file:
        command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "--deploy", "--stress", "tests/deploy"]
        environment = os.environ | {"APPLIANCE_FIGURES": file.name}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        measured = json.loads(Path(file.name).read_bytes() or b"{}")
    return measured, (done.stdout.strip().splitlines() or ["nothing was said"])[-1]


def main() -> None:
    options = arguments(__doc__ or "")
    report = Report(bench="deploy", quick=options.quick)
    report.figures += [bundle_differs(), *exposures()]
    measured, ended = ({}, "--quick") if options.quick else on_a_machine()
    for name, (unit, bar) in BARS.items():
        repeats = int(measured.get(COUNTS.get(name, ""), 1))
        note = "" if name in measured else f"not run: {ended}"
        report.figures.append(
            Figure(name=name, value=measured.get(name), unit=unit, bar=bar, repeats=repeats, note=note)
        )
    report.print(as_json=options.json)
    print(ended, file=sys.stderr)


if __name__ == "__main__":
    main()
