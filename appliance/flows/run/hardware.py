"""What this machine offers: the engine options that suit it, memory and disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from appliance.errors import UsageError, WillNotFit
from appliance.estimate import gpus
from appliance.estimate.nvml import Gpu
from appliance.jobs.job import EngineOptions
from appliance.policy.run_file import EngineChoice

DEFAULT_TOKENS = {"cpu": 1024, "cuda": 8192}
"""Tokens computed at once where nobody says otherwise and memory allows it. On a GPU more would gain little: with 8192
a model of a billion parameters or more computes for longer than the host takes to launch its kernels (counted, not
measured), and the records of one padded length that are sampled together seldom have more."""
GRADIENT_SHARE = 32
"""Per-record gradients take one part in so many of a GPU's memory, and never less than on the CPU. Of 80 GiB that is
2.5, about 120 records at once with the default adapter of an 8B model in bfloat16; 256 MiB would be 12 of them."""


def engine_options(
    device: str,
    dtype: str,
    *,
    physical_tokens: int | None,
    threads: int,
    nproc: int = 1,
    choice: EngineChoice | None = None,
    memory: int | None = None,
) -> EngineOptions:
    """Choose engine options from the run file and the command line, which goes first.

    The dtype "auto" takes bfloat16 where the hardware multiplies it fast. `memory` is what the user says there is, in
    bytes.

    Raises:
      UsageError: an unknown device or dtype.
      WillNotFit: fewer GPUs than processes.
    """
    if device not in ("cpu", "cuda"):
        raise UsageError(f"no device {device}", hint="cpu or cuda")
    if dtype == "auto":
        dtype = "bfloat16" if device == "cuda" or has_fast_bfloat16() else "float32"
    if dtype not in ("bfloat16", "float32"):
        raise UsageError(f"no dtype {dtype}", hint="auto, bfloat16 or float32")
    options = {"device": device, "dtype": dtype, "threads": threads, "nproc": nproc}
    options["physical_tokens"] = DEFAULT_TOKENS[device]
    if device == "cuda":
        options |= _gradient_room(nproc, memory)
    if choice is not None:
        options |= choice.model_dump(exclude_none=True)
    return EngineOptions.model_validate(options | ({"physical_tokens": physical_tokens} if physical_tokens else {}))


def _gradient_room(processes: int, memory: int | None) -> dict[str, int]:
    if memory is None:
        gpu = smallest_gpu(processes)
        memory = gpu.total if gpu else 0
    least = EngineOptions().gradient_bytes
    return {"gradient_bytes": max(least, memory // GRADIENT_SHARE)}


def smallest_gpu(processes: int) -> Gpu | None:
    """Find the GPU with the least free memory of those that so many processes would use, one each; None if unknown.

    Raises:
      WillNotFit: CUDA shows fewer here.
    """
    found = gpus.visible()
    if found is None:
        return None
    if len(found) < processes:
        wanted = "a GPU is needed" if processes == 1 else f"{processes} GPUs are needed, one for each process"
        hint = f"see nvidia-smi and {gpus.VISIBLE}; with --memory a run is planned for another machine"
        raise WillNotFit(f"{wanted}, and CUDA would show {len(found)} here", hint=hint)
    return min(found[:processes], key=lambda gpu: gpu.free)


def idle_gpu() -> str:
    """Name a GPU that a run on the CPU leaves idle; empty if there is none, or none is known."""
    found = gpus.visible()
    return found[0].name if found else ""


def has_fast_bfloat16() -> bool:
    """Tell whether the CPU multiplies bfloat16 in hardware (AVX512-BF16 or AMX); without it float32 is faster."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def require_disk(directory: Path, needed: int) -> None:
    """Raise `WillNotFit` unless `needed` bytes are free where `directory` lies."""
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise WillNotFit(f"{needed >> 20} MiB of disk are needed, {free >> 20} MiB are free", where=str(directory))


def available_memory() -> int:
    """Ask for the bytes of memory that can be had without swapping, within the limit of this process' control group."""
    found = _meminfo("MemAvailable") or os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        group = Path("/proc/self/cgroup").read_text().split("::")[-1].strip()
        limit, used = (Path(f"/sys/fs/cgroup{group}/memory.{name}").read_text() for name in ("max", "current"))
        return min(found, max(0, int(limit) - int(used)))
    except (OSError, ValueError):  # no version 2 hierarchy, or no limit ("max")
        return found


def _meminfo(name: str) -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)
