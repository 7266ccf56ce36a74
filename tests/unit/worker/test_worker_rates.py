"""The rate of a GPU: measured by code that runs on any device, under the name that the driver gives it."""

from __future__ import annotations

import pytest
import torch

from appliance.jobs.job import EngineOptions
from appliance.jobs.selftest import GpuRate
from appliance.worker import rates


def test_a_rate_is_measured() -> None:
    before = torch.get_float32_matmul_precision()
    assert 0 < rates.gigaflops(torch.device("cpu"), torch.float32, 64) < 1e5
    torch.set_float32_matmul_precision(before)


def test_of_a_gpu_and_not_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(rates, "gigaflops", lambda device, dtype: asked.append((device, dtype)) or 500.0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    found = rates.gpu_rate(EngineOptions(device="cuda", dtype="bfloat16"))
    assert found == GpuRate(name="NVIDIA H100 80GB HBM3", dtype="bfloat16", gigaflops=500.0)
    assert asked == [(torch.device("cuda"), torch.bfloat16)]
    assert rates.gpu_rate(EngineOptions()) is None
