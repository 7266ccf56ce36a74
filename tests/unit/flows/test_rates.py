"""Rates of arithmetic: the CPU's measured once, a GPU's as a self-test measured it, both in one file."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.flows.run import rates
from appliance.jobs.selftest import GpuRate

H100 = "NVIDIA H100 80GB HBM3"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    measured = iter([101.26, 999.0])
    monkeypatch.setattr(rates, "gigaflops", lambda: next(measured))
    return SimpleNamespace(root=tmp_path)


def test_a_gpus_rate_is_not_known_before_it_was_measured(home: Any) -> None:
    assert rates.gpu(home, H100, "bfloat16") is None
    rates.keep(home, None)
    assert not (home.root / "machine.json").exists()
    rates.keep(home, GpuRate(name=H100, dtype="bfloat16", gigaflops=612345.67))
    rates.keep(home, GpuRate(name="NVIDIA L4", dtype="bfloat16", gigaflops=90000.0))
    assert rates.gpu(home, H100, "bfloat16") == 612345.7
    assert rates.gpu(home, H100, "float32") is None
    assert rates.gpu(home, "NVIDIA L40", "bfloat16") is None
    rates.keep(home, GpuRate(name=H100, dtype="bfloat16", gigaflops=5.0))
    assert rates.gpu(home, H100, "bfloat16") == 5.0


def test_the_cpus_rate_is_measured_once_and_kept_beside_the_others(home: Any) -> None:
    rates.keep(home, GpuRate(name=H100, dtype="float32", gigaflops=50000.0))
    assert rates.cpu(home) == rates.cpu(home) == 101.3
    assert rates.gpu(home, H100, "float32") == 50000.0


@pytest.mark.parametrize("content", [b"", b"[]", b'{"gigaflops": "fast", "gpus": 3}', b"\xff"])
def test_a_file_that_says_nothing_is_measured_again(home: Any, content: bytes) -> None:
    (home.root / "machine.json").write_bytes(content)
    assert rates.gpu(home, H100, "bfloat16") is None
    assert rates.cpu(home) == 101.3
