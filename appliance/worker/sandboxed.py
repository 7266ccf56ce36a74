"""What every job does before it imports torch: enter the sandbox; and what every result says of its libraries."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from appliance.isolation import sandbox
from appliance.jobs.job import IsolationReport, IsolationSpec
from appliance.jobs.rundir import RunDir

LIBRARIES = ("torch", "opacus", "peft", "transformers", "dp-accounting", "cryptography")


def enter(
    spec: IsolationSpec, run_dir: RunDir, *readable: Path, ranks: bool = False, address: str = ""
) -> IsolationReport:
    """No network from here on (ranks keep what leads to each other), and no files but the system's and those needed."""
    read = [*sandbox.system_paths(), *readable]
    return sandbox.enter(spec, read=read, write=[run_dir.path, Path("/dev/null")], ranks=ranks, address=address)


def libraries() -> dict[str, str]:
    """Versions of the libraries that decide what is computed."""
    return {name: version(name) for name in LIBRARIES}
