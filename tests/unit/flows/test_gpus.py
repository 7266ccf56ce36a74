"""GPUs as `doctor` tells of them: whatever is wrong with a stand-in has to be found and named."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.errors import WillNotFit
from appliance.flows import doctor, gpus, launch
from appliance.flows.gpus import Step
from appliance.isolation import gpu, landlock
from appliance.jobs.job import EngineOptions
from tests import gpus as standin

needs_landlock = pytest.mark.skipif(not landlock.abi(), reason="not run: this kernel has no Landlock")
CUDA = EngineOptions(device="cuda")


def examined(root: Path) -> dict[str, Step]:
    return {step.name: step for step in gpus.examine(root)}


def failed(steps: dict[str, Step]) -> set[str]:
    return {name for name, step in steps.items() if not step.ok and step.needed}


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> standin.StandIn:
    made = standin.make(tmp_path / "standin")
    made.start(monkeypatch)
    return made


@needs_landlock
def test_a_gpu_that_works_is_told_of_in_full(stand_in: standin.StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    steps = examined(stand_in.root)
    assert failed(steps) == set()
    assert steps["GPUs"].detail == "1 found, driver 580.159.04"
    assert "CUDA_VISIBLE_DEVICES=0" in steps["GPU environment"].detail
    assert "restricted by landlock" in steps["GPU start"].detail
    assert "libcuda.so.1 for CUDA 13.0" in steps["GPU library"].detail
    assert steps["GPU models"].detail == "0: Stand-in GPU, 81920 MiB, capability 9.0, at 0000:01:00.0"
    assert steps["GPU free memory"].detail == "80896 MiB of 81920 MiB on GPU 0"
    assert {"GPU device memory", "GPU pinned memory", "GPU compiled kernel", "GPU libraries"} <= set(steps)
    assert steps["GPU compiled kernel"].ok, "the cache for compiled kernels lies where a worker may write"
    assert steps["GPU sockets"].detail == "no new one; the driver holds 1"
    assert "cuda-standin" in steps["GPU threads"].detail
    assert {f"GPU node {stand_in.root}/dev/{name}" for name in standin.NODES} <= set(steps)
    gpus.require(CUDA, stand_in.root)


def test_a_machine_without_a_gpu_is_no_fault(tmp_path: Path) -> None:
    steps = examined(tmp_path)
    assert set(steps) == {"GPUs"}
    assert "there is no GPU" in steps["GPUs"].detail
    assert not steps["GPUs"].needed
    gpus.require(EngineOptions(), tmp_path)
    with pytest.raises(WillNotFit, match="there is no GPU"):
        gpus.require(CUDA, tmp_path)


def test_a_missing_node_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = standin.make(tmp_path / "standin", without=("nvidia-uvm",))
    made.start(monkeypatch)
    steps = examined(made.root)
    assert "/dev/nvidia-uvm is missing" in steps["GPU set-up"].detail
    assert "nvidia-modprobe" in steps["GPU set-up"].hint
    with pytest.raises(WillNotFit, match="/dev/nvidia-uvm is missing"):
        gpus.require(CUDA, made.root)


@needs_landlock
def test_a_file_rule_is_named_with_the_tree_that_it_closes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = standin.make(tmp_path / "standin", needs="/dev/full")
    made.start(monkeypatch)
    steps = examined(made.root)
    assert "cuInit: CUDA_ERROR_OPERATING_SYSTEM (304)" in steps["GPU start"].detail
    assert steps["GPU without the sandbox"].detail == "it works: a file rule refuses it, beneath /dev"
    with pytest.raises(WillNotFit, match="the GPU cannot be used: start: the GPU driver refuses cuInit") as refusal:
        gpus.require(CUDA, made.root)
    assert "appliance doctor" in refusal.value.hint


@needs_landlock
def test_a_node_that_the_file_rules_close_is_told_from_one_that_others_close(
    stand_in: standin.StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a control group or a broken GPU says cannot be brought about here; what is made of it can be seen."""

    def probe(root: Path, *arguments: str, without: str = "", ordinal: int = 0) -> list[Step]:
        inside = {"/dev/nvidia0": "EACCES", "/dev/nvidiactl": "EPERM", "/dev/nvidia-uvm": "EIO"}
        outside = {"/dev/nvidiactl": "EPERM", "/dev/nvidia-uvm": "EIO"}
        closed = outside if without else inside
        return [Step(name, name not in closed, closed.get(name, "opens")) for name in inside]

    monkeypatch.setattr(gpus, "_probe", probe)
    nodes = {step.name: step for step in gpus._nodes(stand_in.root)}
    assert "the file rules of the sandbox refuse it (EACCES)" in nodes["GPU node /dev/nvidia0"].detail
    assert "control group" in nodes["GPU node /dev/nvidiactl"].detail
    assert "the kernel's log" in nodes["GPU node /dev/nvidia-uvm"].detail


NODEV = """
import subprocess, sys
from pathlib import Path
from appliance.flows import gpus
from tests import gpus as standin
root = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "nodev", "none", str(root / "dev")], check=True)
for name in standin.NODES:
    standin.make_node(root / "dev" / name)
for step in gpus._nodes(root):
    print(step.ok, step.detail)
"""


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="not run: mounting takes root")
def test_permissions_are_named(stand_in: standin.StandIn) -> None:
    repository = Path(__file__).parents[3]
    command = ["unshare", "--mount", sys.executable, "-c", NODEV, str(stand_in.root)]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    if "mount" in done.stderr:
        pytest.skip("not run: this machine allows no mounts")
    lines = done.stdout.splitlines()
    assert len(lines) == len(standin.NODES), done.stderr
    for line in lines:
        assert line.startswith("False its Unix permissions, or a file system mounted nodev")
        assert "(EACCES; mode 666, owner 0:0, this is user 0)" in line


def test_a_driver_that_crashes_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = standin.make(tmp_path / "standin", crash=True)
    made.start(monkeypatch)
    steps = examined(made.root)
    assert steps["GPU probe"].detail == "it was ended by SIGSEGV"
    assert "it is not the sandbox" in steps["GPU without the sandbox"].detail
    with pytest.raises(WillNotFit, match="SIGSEGV"):
        gpus.require(CUDA, made.root)


def test_a_driver_whose_library_is_missing_is_told_of(
    stand_in: standin.StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LD_LIBRARY_PATH")
    detail = examined(stand_in.root)["GPU start"].detail
    assert "cannot be loaded: libcuda.so.1" in detail


@needs_landlock
def test_more_processes_than_gpus_are_refused(stand_in: standin.StandIn) -> None:
    with pytest.raises(WillNotFit, match="process 1 of this machine has no GPU of its own"):
        gpus.require(EngineOptions(device="cuda", nproc=2), stand_in.root)
    gpus.require(EngineOptions(device="cuda", nproc=2), stand_in.root, processes=1)  # an evaluation is one process


def test_a_probe_that_cannot_run_is_not_taken_for_one_that_found_nothing(
    stand_in: standin.StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus.interpreter.sys, "executable", "/bin/false")
    assert "GPU probe" in failed(examined(stand_in.root))
    with pytest.raises(WillNotFit, match="the GPU cannot be used: probe"):
        gpus.require(CUDA, stand_in.root)


def test_doctor_says_what_is_refused(stand_in: standin.StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    real = gpus.examine
    monkeypatch.setattr(doctor.gpus, "examine", lambda **options: real(stand_in.root, **options))
    checks = {check.name: check for check in doctor._devices(sandboxed=True)}
    assert checks["GPU start"].verdict == ("ok" if landlock.abi() else "refused")
    (stand_in.root / "dev/nvidia-uvm").unlink()
    checks = {check.name: check for check in doctor._devices(sandboxed=True)}
    assert checks["GPU set-up"].verdict == "refused"
    assert "nvidia-modprobe" in checks["GPU set-up"].detail
    assert checks["GPU start"].verdict == "refused"


def test_a_worker_keeps_its_caches_in_the_run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/usr/local/nvidia/lib64")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    monkeypatch.setenv("CUDA_CACHE_PATH", "/home/somebody")
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps")
    environment = launch.environment(tmp_path)
    assert environment["CUDA_VISIBLE_DEVICES"] == "3"
    assert environment["LD_LIBRARY_PATH"] == "/usr/local/nvidia/lib64"
    assert environment["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    for name in (*launch.GPU_CACHES, "TMPDIR"):
        assert Path(environment[name]).is_relative_to(tmp_path)
    assert not Path(environment["CUDA_MPS_PIPE_DIRECTORY"]).exists()


def test_the_rules_do_not_depend_on_a_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert gpu.gpu(None, tmp_path) == gpu.Gpu(ordinal=None)
