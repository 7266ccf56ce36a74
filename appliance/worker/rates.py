"""How fast the GPU of this worker multiplies: measured before a self-test, where nothing private is at hand."""

from __future__ import annotations

import time
from typing import Any

from appliance.jobs.job import EngineOptions
from appliance.jobs.selftest import GpuRate

_SIZE, _PRODUCTS, _REPEATS = 4096, 8, 3


def gpu_rate(engine: EngineOptions) -> GpuRate | None:
    """Measure the GPU's rate in the engine's dtype; None on the CPU, whose rate the control plane measures."""
    if engine.device == "cpu":
        return None
    import torch

    found = gigaflops(torch.device(engine.device), getattr(torch, engine.dtype))
    return GpuRate(name=torch.cuda.get_device_name(), dtype=engine.dtype, gigaflops=found)


def gigaflops(device: Any, dtype: Any, size: int = _SIZE) -> float:
    """Measure 10^9 floating-point operations per second of square products, the best of some runs after a warm-up.

    Args:
      device: a torch device.
      dtype: a torch dtype; products in float32 are exact to float32.
      size: rows and columns.
    """
    import torch

    torch.set_float32_matmul_precision("highest")
    left = torch.randn(size, size, device=device, dtype=dtype)
    out = torch.empty_like(left)
    best = 0.0
    for _ in range(1 + _REPEATS):
        float(out[0, 0])  # waits for all that was asked of the device
        started = time.perf_counter()
        for _ in range(_PRODUCTS):
            torch.mm(left, left, out=out)
        float(out[0, 0])
        best = max(best, 2e-9 * size**3 * _PRODUCTS / (time.perf_counter() - started))
    return best
