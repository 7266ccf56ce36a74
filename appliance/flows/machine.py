"""What this machine offers: the engine options that suit it, memory and disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from appliance.errors import UsageError, WillNotFit
from appliance.records import EngineOptions


def engine_options(
    device: str, dtype: str, *, physical_tokens: int | None, threads: int, nproc: int = 1
) -> EngineOptions:
    """Engine options from the command line; dtype "auto" takes bfloat16 where the hardware multiplies it fast.

    Raises:
      UsageError: an unknown device or dtype.
    """
    if device not in ("cpu", "cuda"):
        raise UsageError(f"no device {device}", hint="cpu or cuda")
    if dtype == "auto":
        dtype = "bfloat16" if device == "cuda" or has_fast_bfloat16() else "float32"
    if dtype not in ("bfloat16", "float32"):
        raise UsageError(f"no dtype {dtype}", hint="auto, bfloat16 or float32")
    physical_tokens = physical_tokens or (8192 if device == "cuda" else 1024)
    return EngineOptions.model_validate(
        {"device": device, "dtype": dtype, "physical_tokens": physical_tokens, "threads": threads, "nproc": nproc}
    )


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
    """Bytes of memory that can be had without swapping."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
