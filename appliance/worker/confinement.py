"""What every job does before it imports torch: enter the sandbox; and what every result says of its libraries."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from appliance.isolation import gpu as gpus
from appliance.isolation import sandbox
from appliance.isolation.gpu import Gpu
from appliance.isolation.tunnel import End
from appliance.jobs.job import EngineOptions, IsolationReport, IsolationSpec
from appliance.jobs.rundir import RunDir

LIBRARIES = ("torch", "opacus", "peft", "transformers", "dp-accounting", "cryptography")


def gpu_of(engine: EngineOptions, local: int = 0) -> Gpu | None:
    """Find the GPU that a job gets: None for one on the CPU. Call it before a key is asked for.

    Args:
      engine: of the job.
      local: which of the processes of this machine this is.

    Raises:
      WillNotFit: something is missing that a sandboxed process could not make.
    """
    if engine.device != "cuda":
        return None
    gpus.require()
    return gpus.gpu(local)


def enter(
    spec: IsolationSpec,
    run_dir: RunDir,
    *readable: Path,
    ranks: bool = False,
    end: End | None = None,
    gpu: Gpu | None = None,
) -> IsolationReport:
    """Enter the sandbox: no network (ranks keep what leads to each other), no files but the system's and the given."""
    read, write = [*sandbox.system_paths(), *readable], [run_dir.path, Path("/dev/null")]
    return sandbox.enter(spec, read=read, write=write, ranks=ranks, end=end, gpu=gpu)


def libraries() -> dict[str, str]:
    """Read the versions of the libraries that decide what is computed."""
    return {name: version(name) for name in LIBRARIES}
