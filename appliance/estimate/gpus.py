"""Which GPUs a worker would see, and how much memory each has: asked of the driver, without torch or a CUDA context.

The first source that answers counts: NVML, then the program nvidia-smi. Where neither does, nothing is known, which is
not the same as no GPU. CUDA numbers the GPUs like nvidia-smi, because workers are started with CUDA_DEVICE_ORDER set to
PCI_BUS_ID.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence

from appliance.estimate import nvml
from appliance.estimate.nvml import Gpu, Unreadable

VISIBLE = "CUDA_VISIBLE_DEVICES"
_QUERY = (
    "nvidia-smi",
    "--query-gpu=name,uuid,memory.total,memory.free,mig.mode.current",
    "--format=csv,noheader,nounits",
)
_WAIT_S = 30.0
_MIB = 1 << 20


def visible(environment: Mapping[str, str] = os.environ) -> list[Gpu] | None:
    """List the GPUs that CUDA shows to a process with this environment, in CUDA's order; None if nobody can tell.

    A GPU that is split up (MIG) and not named by a part counts as its smallest part, since CUDA shows one of them.
    """
    found = _all()
    return None if found is None else [_usable(gpu) for gpu in _choose(found, environment.get(VISIBLE)) if _exists(gpu)]


def _all() -> list[Gpu] | None:
    for source in (nvml.gpus, _smi):
        try:
            return source()
        except Unreadable:
            continue
    return None


def _smi() -> list[Gpu]:
    """List the GPUs that nvidia-smi lists. It does not say how large the parts of a GPU are."""
    try:
        done = subprocess.run(_QUERY, capture_output=True, text=True, check=True, timeout=_WAIT_S)
        rows = [[field.strip() for field in line.split(",")] for line in done.stdout.splitlines()]
        listed = [(name, uuid, int(total) * _MIB, int(free) * _MIB, mig) for name, uuid, total, free, mig in rows]
    except (OSError, ValueError, subprocess.SubprocessError):
        raise Unreadable("nvidia-smi") from None
    if any(mig == "Enabled" for *_, mig in listed):
        raise Unreadable("nvidia-smi")
    return [Gpu(name=name, uuid=uuid, total=total, free=free) for name, uuid, total, free, _ in listed]


def _choose(found: Sequence[Gpu], named: str | None) -> list[Gpu]:
    """Choose what CUDA_VISIBLE_DEVICES names: numbers, or beginnings of UUIDs, up to the first that names nothing."""
    if named is None:
        return list(found)
    chosen = list(_up_to_nothing(found, named))
    return chosen if len({gpu.uuid for gpu in chosen}) == len(chosen) else []  # CUDA shows none if one is there twice


def _up_to_nothing(found: Sequence[Gpu], named: str) -> Iterator[Gpu]:
    everything = [*found, *(part for gpu in found for part in gpu.parts or ())]
    for word in (part.strip() for part in named.split(",")):
        if word.isdecimal():
            matching = [*found[int(word) : int(word) + 1]]
        else:
            matching = [gpu for gpu in everything if word.startswith(("GPU-", "MIG-")) and gpu.uuid.startswith(word)]
        if len(matching) != 1:
            return
        yield matching[0]


def _exists(gpu: Gpu) -> bool:
    return gpu.parts is None or len(gpu.parts) > 0


def _usable(gpu: Gpu) -> Gpu:
    return min(gpu.parts, key=lambda part: part.total) if gpu.parts else gpu
