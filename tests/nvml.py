"""Stand-ins for what a GPU's driver brings along: a shared library with NVML's functions, and an nvidia-smi script."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from appliance.estimate.nvml import Gpu

GIB = 1 << 30
H100 = Gpu(name="NVIDIA H100 80GB HBM3", uuid="GPU-1111aaaa", total=80 * GIB, free=79 * GIB)
SMALL = Gpu(name="NVIDIA L4", uuid="GPU-2222bbbb", total=24 * GIB, free=20 * GIB)
PARTS = (
    Gpu(name="NVIDIA H100 80GB HBM3 MIG 3g.40gb", uuid="MIG-3333", total=40 * GIB, free=39 * GIB),
    Gpu(name="NVIDIA H100 80GB HBM3 MIG 1g.10gb", uuid="MIG-4444", total=10 * GIB, free=9 * GIB),
)
SPLIT = Gpu(name=H100.name, uuid="GPU-5555cccc", total=80 * GIB, free=80 * GIB, parts=PARTS)

_SOURCE = """
#include <string.h>
typedef struct { const char *name, *uuid; unsigned long long total, free; int whole, split; } Device;
typedef struct { unsigned long long total, free, used; } Memory;
static Device devices[] = { %s {0} };
#define LISTED (int)(sizeof devices / sizeof *devices - 1)
static Device *nth(int whole, unsigned index) {
    for (int i = 0; i < LISTED; i++)
        if (devices[i].whole == whole && index-- == 0) return devices + i;
    return 0;
}
int nvmlInit_v2(void) { return %d; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { for (*count = 0; nth(-1, *count); ++*count); return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device **out) { return (*out = nth(-1, index)) ? 0 : 2; }
int nvmlDeviceGetName(Device *d, char *out, unsigned size) { strncpy(out, d->name, size); return 0; }
int nvmlDeviceGetUUID(Device *d, char *out, unsigned size) { strncpy(out, d->uuid, size); return 0; }
int nvmlDeviceGetMemoryInfo(Device *d, Memory *out) {
    if (!d->total) return 3;
    out->total = d->total, out->free = d->free, out->used = d->total - d->free;
    return 0;
}
int nvmlDeviceGetMigMode(Device *d, unsigned *current, unsigned *pending) {
    *current = *pending = d->split > 0;
    return d->split < 0 ? 3 : 0;
}
int nvmlDeviceGetMaxMigDeviceCount(Device *d, unsigned *count) { *count = 7; return 0; }
int nvmlDeviceGetMigDeviceHandleByIndex(Device *d, unsigned index, Device **out) {
    return (*out = index ? nth((int)(d - devices), index - 1) : 0) ? 0 : 6; /* the first place is empty */
}
"""


def library(directory: Path, gpus: Sequence[Gpu], *, broken: bool = False) -> dict[str, str]:
    """Compiles an NVML that lists these GPUs; returns the environment in which a process finds it."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("not run: no C compiler for the stand-in of NVML")
    rows, parts = [], []
    for index, gpu in enumerate(gpus):
        rows.append(_row(gpu, -1, -1 if gpu.parts is None else 1))
        parts += [_row(part, index, 0) for part in gpu.parts or ()]
    source = directory / "nvml.c"
    source.write_text(_SOURCE % ("".join([*rows, *parts]), 9 if broken else 0))
    out = directory / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(out), str(source)], check=True)
    return {"LD_LIBRARY_PATH": str(directory)}


def _row(gpu: Gpu, whole: int, split: int) -> str:
    return f'{{"{gpu.name}", "{gpu.uuid}", {gpu.total}ull, {gpu.free}ull, {whole}, {split}}}, '


def smi(directory: Path, output: str, status: int = 0) -> Path:
    """Writes an nvidia-smi that prints this; returns the directory that belongs in front of PATH."""
    script = directory / "nvidia-smi"
    script.write_text(f"#!/bin/sh\ncat <<'END'\n{output}\nEND\nexit {status}\n")
    script.chmod(0o755)
    return directory
