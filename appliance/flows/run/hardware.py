"""What this machine offers: the engine options that suit it, memory and disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from appliance.errors import UsageError, WillNotFit
from appliance.jobs.job import EngineOptions
from appliance.policy.run_file import EngineChoice

DEFAULT_TOKENS = {"cpu": 1024, "cuda": 8192}
"""Tokens computed at once where nobody says otherwise and memory allows it."""


def engine_options(
    device: str,
    dtype: str,
    *,
    physical_tokens: int | None,
    threads: int,
    nproc: int = 1,
    choice: EngineChoice | None = None,
) -> EngineOptions:
    """Engine options from the run file and the command line, which goes first.

    The dtype "auto" takes bfloat16 where the hardware multiplies it fast.

    Raises:
      UsageError: an unknown device or dtype.
    """
    if device not in ("cpu", "cuda"):
        raise UsageError(f"no device {device}", hint="cpu or cuda")
    if dtype == "auto":
        dtype = "bfloat16" if device == "cuda" or has_fast_bfloat16() else "float32"
    if dtype not in ("bfloat16", "float32"):
        raise UsageError(f"no dtype {dtype}", hint="auto, bfloat16 or float32")
    options = {"device": device, "dtype": dtype, "threads": threads, "nproc": nproc}
    options["physical_tokens"] = DEFAULT_TOKENS[device]
    if choice is not None:
        options |= choice.model_dump(exclude_none=True)
    return EngineOptions.model_validate(options | ({"physical_tokens": physical_tokens} if physical_tokens else {}))


def has_fast_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware (AVX512-BF16 or AMX); without it float32 is faster."""
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
    """Bytes of memory that can be had without swapping, within the limit of this process' control group."""
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
