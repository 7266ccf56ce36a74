"""Resolve and hash what a bundle holds: `python deploy/bundle/lock.py [FLAVOUR ...]` writes `locks/FLAVOUR.txt`.

The versions are those of constraints.txt; pip resolves, nothing is installed, and wheels of the CUDA flavour are not
even downloaded. Whoever reviews a change of a lock sees which wheel became another. Needs the network and pip.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LOCKS = Path(__file__).resolve().parent / "locks"
WANTED = {
    "control": ("",),
    "cpu": ("[compute,serve]", "torch==2.13.0"),
    "cuda": ("[compute,serve]", "torch==2.13.0"),
}
"""Flavours: extras of the appliance's wheel, and what else is named. The control plane has no torch."""
CONTROLLER = "controller"
"""Lock of what runs the playbooks; every bundle brings it, no target installs it."""
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
_NOTHING_ELSE = {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "PIP_EXTRA_INDEX_URL": ""}
"""Settings of pip under which torch is that of PyPI, which brings CUDA."""


def resolve(flavour: str, wheel: Path) -> list[str]:
    """Resolve a flavour to lines `name==version --hash=sha256:...`, sorted, without the appliance itself."""
    if flavour == CONTROLLER:
        wanted = ["ansible-core==2.19.14"]
    else:
        extras, *more = WANTED[flavour]
        wanted = ["pip", f"{wheel}{extras}", *more]
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        command = [*_pip("install"), "--dry-run", "--ignore-installed", "--only-binary", ":all:"]
        command += ["--constraint", str(ROOT / "constraints.txt"), "--report", report.name]
        subprocess.run([*command, *wanted], check=True, env=os.environ | (_NOTHING_ELSE if flavour == "cuda" else {}))
        found: list[dict[str, Any]] = json.loads(Path(report.name).read_bytes())["install"]
    lines = [_line(item) for item in found if item["metadata"]["name"] != "appliance"]
    _require_flavour(flavour, lines)
    return sorted(lines, key=str.lower)


def _require_flavour(flavour: str, lines: list[str]) -> None:
    """Refuse the torch of another flavour, which the machine's settings of pip may have brought."""
    torch = [line for line in lines if line.startswith("torch==")]
    if flavour == "control" and torch:
        sys.exit("the control plane must not need torch")
    if flavour == "cpu" and not any("+cpu" in line for line in torch):
        sys.exit(f"pip found a torch with CUDA: set PIP_EXTRA_INDEX_URL={CPU_INDEX}")


def _line(item: dict[str, Any]) -> str:
    metadata, digest = item["metadata"], item["download_info"]["archive_info"]["hashes"]["sha256"]
    return f"{metadata['name']}=={metadata['version']} --hash=sha256:{digest}"


def appliance_wheel(directory: Path, epoch: int) -> Path:
    """Build the appliance's own wheel, whose bytes follow from the source and `epoch` (seconds since 1970)."""
    environment = os.environ | {"SOURCE_DATE_EPOCH": str(epoch)}
    command = [*_pip("wheel"), "--no-deps", "--wheel-dir", str(directory), str(ROOT)]
    subprocess.run(command, check=True, env=environment)
    return next(directory.glob("appliance-*.whl"))


def _pip(verb: str) -> list[str]:
    return [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", verb]


def download(flavour: str, directory: Path) -> None:
    """Fetch the wheels of a lock that are not in `directory` yet; pip compares every digest."""
    directory.mkdir(parents=True, exist_ok=True)
    command = [*_pip("download"), "--no-deps", "--require-hashes", "--only-binary", ":all:"]
    command += ["--find-links", str(directory), "--dest", str(directory), "--requirement"]
    environment = dict(os.environ)
    if flavour == "cuda":
        environment |= {**_NOTHING_ELSE, "PIP_FIND_LINKS": str(directory)}
    for name in (flavour, CONTROLLER):  # apart: their versions need not agree
        subprocess.run([*command, str(LOCKS / f"{name}.txt")], check=True, env=environment)


def main(flavours: list[str]) -> None:
    """Write the locks of the flavours that are named, or of all."""
    with tempfile.TemporaryDirectory() as directory:
        wheel = appliance_wheel(Path(directory), 0)
        for flavour in flavours or (*WANTED, CONTROLLER):
            lines = resolve(flavour, wheel)
            (LOCKS / f"{flavour}.txt").write_text("".join(f"{line}\n" for line in lines))
            print(f"{flavour}: {len(lines)} wheels")


if __name__ == "__main__":
    main(sys.argv[1:])
