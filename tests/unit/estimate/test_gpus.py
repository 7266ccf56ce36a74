"""Which GPUs are found, with stand-ins for the driver: a compiled NVML, in a process that finds it, and nvidia-smi."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from appliance.estimate import gpus, nvml
from appliance.estimate.nvml import Gpu, Unreadable
from tests.nvml import GIB, H100, PARTS, SMALL, SPLIT, library, smi

SCRIPT = """
import json, sys
from appliance.estimate import gpus
found = gpus.visible()
assert "torch" not in sys.modules
print(json.dumps(None if found is None else [[gpu.name, gpu.uuid, gpu.total, gpu.free] for gpu in found]))
"""
WITHOUT = {name: value for name, value in os.environ.items() if name not in (gpus.VISIBLE, "LD_LIBRARY_PATH")}


def seen(environment: dict[str, str]) -> list[list[object]] | None:
    """What a process with this environment sees."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env={**WITHOUT, **environment}, capture_output=True, check=True
    )
    found: list[list[object]] | None = orjson.loads(done.stdout)
    return found


def listed(*found: Gpu) -> list[list[object]]:
    return [[gpu.name, gpu.uuid, gpu.total, gpu.free] for gpu in found]


def test_nvml_is_asked_and_CUDA_VISIBLE_DEVICES_respected(tmp_path: Path) -> None:  # noqa: N802
    environment = library(tmp_path, [H100, SMALL, SPLIT])
    # CUDA computes on a part of a GPU that is split up: the smallest counts.
    assert seen(environment) == listed(H100, SMALL, PARTS[1])
    assert seen({**environment, gpus.VISIBLE: "1,0"}) == listed(SMALL, H100)
    assert seen({**environment, gpus.VISIBLE: "GPU-2222"}) == listed(SMALL)
    assert seen({**environment, gpus.VISIBLE: "MIG-3333"}) == listed(PARTS[0])
    assert seen({**environment, gpus.VISIBLE: ""}) == []


def test_a_split_gpu_without_parts_shows_nothing(tmp_path: Path) -> None:
    assert seen(library(tmp_path, [replace(SPLIT, parts=()), SMALL])) == listed(SMALL)


@pytest.mark.parametrize("broken", [True, False])
def test_a_library_that_fails_is_no_machine_without_gpus(tmp_path: Path, broken: bool) -> None:
    # Unified memory has no total of its own: the call says "not supported", as the stand-in does for 0 bytes.
    listing = [H100] if broken else [H100, replace(SMALL, total=0, free=0)]
    environment = library(tmp_path, listing, broken=broken)
    assert seen({**environment, "PATH": str(tmp_path)}) is None


def test_nvidia_smi_is_asked_where_there_is_no_nvml(tmp_path: Path) -> None:
    path = smi(
        tmp_path, "NVIDIA H100 80GB HBM3, GPU-1111aaaa, 81920, 80896, Disabled\nNVIDIA L4, GPU-2, 24576, 24, [N/A]"
    )
    environment = {"PATH": f"{path}:{os.environ['PATH']}"}
    assert seen(environment) == [
        ["NVIDIA H100 80GB HBM3", "GPU-1111aaaa", 80 * GIB, 79 * GIB],
        ["NVIDIA L4", "GPU-2", 24 * GIB, 24 << 20],
    ]
    assert seen({**environment, gpus.VISIBLE: "1"}) == [["NVIDIA L4", "GPU-2", 24 * GIB, 24 << 20]]


@pytest.mark.parametrize(
    ("output", "status"),
    [
        ("NVIDIA H100, GPU-1, 81920, 80896, Enabled", 0),  # it does not say how large the parts are
        ("NVIDIA GB10, GPU-1, [N/A], [N/A], [N/A]", 0),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", 9),
        ("something else", 0),
    ],
)
def test_what_nvidia_smi_cannot_say_is_not_known(tmp_path: Path, output: str, status: int) -> None:
    assert seen({"PATH": f"{smi(tmp_path, output, status)}:{os.environ['PATH']}"}) is None


def test_without_either_nothing_is_known(tmp_path: Path) -> None:
    assert seen({"PATH": str(tmp_path)}) is None


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ("0", [H100]),
        (" 1 , 0 ", [SMALL, H100]),
        ("0,7,1", [H100]),  # what comes after a number that is none does not count
        ("-1", []),
        ("0,-1,1", [H100]),
        ("0,0", []),  # CUDA shows none if one is named twice
        ("NoDevFiles", []),
        ("GPU-1111aaaa,GPU-2222bbbb", [H100, SMALL]),
        ("GPU-", []),  # it could mean any
        ("GPU-9", []),
        ("1111aaaa", []),
        ("MIG-4444,MIG-3333", [PARTS[1], PARTS[0]]),
    ],
)
def test_how_devices_are_named(monkeypatch: pytest.MonkeyPatch, named: str, expected: list[Gpu]) -> None:
    monkeypatch.setattr(nvml, "gpus", lambda: [H100, SMALL, SPLIT])
    assert gpus.visible({gpus.VISIBLE: named}) == expected


def test_a_library_that_is_older_than_a_function(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unreadable):
        nvml._call(object(), "nvmlInit_v2")
