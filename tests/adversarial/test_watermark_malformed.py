"""Suspects come from strangers: whatever lies in them is refused with a reason or ends in a number, never a crash."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from appliance.errors import ArtefactMissing, DataInvalid, WillNotFit
from appliance.flows import launch
from appliance.flows.watermark import marking
from appliance.jobs.job import EngineOptions, IsolationSpec
from appliance.jobs.rundir import RunDir
from appliance.jobs.watermark import DetectJob, DetectResult, WatermarkKey
from appliance.models.packed_weights import open_weights
from appliance.values import to_json
from appliance.watermark.adapters import AdapterSuspect, ModelSuspect, open_tensors, read_adapter
from appliance.watermark.detection import project, score
from appliance.watermark.reference import Reference, decompose

A, B = "base_model.model.m.lora_A.weight", "base_model.model.m.lora_B.weight"


def tensors(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    return {A: torch.ones(2, 8), B: torch.ones(6, 2)} | changes


def write(directory: Path, state: dict[str, torch.Tensor], config: object = None) -> Path:
    save_file(state, directory / "adapter_model.safetensors")
    text = config if isinstance(config, str) else json.dumps({"r": 2, "lora_alpha": 4} if config is None else config)
    (directory / "adapter_config.json").write_text(text)
    return directory


@pytest.fixture
def reference() -> Reference:
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(2, 8, generator=generator), torch.randn(6, 2, generator=generator)
    return decompose("m", a, b, 2.0, torch.zeros(8, 0))


@pytest.mark.parametrize(
    "config",
    ["", "[", "[]", "null", "7", '"r"', {}, {"r": 0, "lora_alpha": 1}, {"r": "x", "lora_alpha": 1}, {"r": 2},
     {"r": 2, "lora_alpha": None}, {"r": 2, "lora_alpha": [1]}, {"r": 2, "lora_alpha": 4, "rank_pattern": {"m": 4}},
     {"r": 2, "lora_alpha": 4, "use_dora": True}],
)  # fmt: skip
def test_a_configuration_that_is_none_is_refused(tmp_path: Path, config: object) -> None:
    with pytest.raises(DataInvalid):
        read_adapter(write(tmp_path, tensors(), config))


@pytest.mark.parametrize(
    "state",
    [
        {},
        {A: torch.ones(2, 8)},
        {"x": torch.ones(2)},
        tensors(x=torch.ones(2)),
        {A: torch.ones(2, 8), B: torch.ones(6, 3)},
        {A: torch.ones(16), B: torch.ones(12)},
        {A: torch.ones(2, 8), B: torch.ones(6, 2), A.replace("weight", "default.weight"): torch.ones(2, 8)},
    ],
)
def test_tensors_that_are_no_adapter_are_refused(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    with pytest.raises(DataInvalid):
        read_adapter(write(tmp_path, state))


def test_bytes_that_are_no_safetensors_are_refused(tmp_path: Path) -> None:
    whole = write(tmp_path, tensors()) / "adapter_model.safetensors"
    data = whole.read_bytes()
    for damaged in (b"", b"\xff" * 64, data[:9], data[:-1], data[8:]):
        whole.write_bytes(damaged)
        with pytest.raises(DataInvalid):
            read_adapter(tmp_path)
        (tmp_path / "model").mkdir(exist_ok=True)
        (tmp_path / "model" / "model.safetensors").write_bytes(damaged)
        with pytest.raises(DataInvalid), open_tensors(tmp_path / "model"):
            pass
    with pytest.raises(ArtefactMissing), open_tensors(tmp_path / "nothing"):
        pass


@pytest.mark.parametrize(
    "change",
    [
        lambda a, b: (a * float("nan"), b),
        lambda a, b: (a * float("inf"), b),
        lambda a, b: (a * 1e38, b * 1e38),
        lambda a, b: (a * 1e-38, b * 1e-38),
        lambda a, b: (a[:, :4], b),
        lambda a, b: (a, b[:4]),
        lambda a, b: (a[:1], b[:, :1]),
        lambda a, b: (a.to(torch.int32), b.to(torch.int32)),
        lambda a, b: (a[:0], b[:, :0]),
    ],
)
def test_an_adapter_ends_in_a_number_or_a_refusal(
    tmp_path: Path, reference: Reference, change: Callable[..., Any]
) -> None:
    a, b = change(torch.ones(2, 8), torch.ones(6, 2))
    suspect = AdapterSuspect(read_adapter(write(tmp_path, {A: a.contiguous(), B: b.contiguous()})))
    found = 0.0
    with contextlib.suppress(DataInvalid):
        found = score(project(suspect, [reference]), lambda module: bytes(32))
    assert abs(found) < 7


@pytest.mark.parametrize(
    "weight",
    [torch.full((6, 8), float("nan")), torch.ones(8, 6), torch.ones(48, 1, dtype=torch.uint8), torch.ones(6, 8).byte()],
)
def test_a_model_that_cannot_be_compared_is_refused(tmp_path: Path, reference: Reference, weight: torch.Tensor) -> None:
    for name, tensor in (("suspect", weight), ("base", torch.ones(6, 8))):
        (tmp_path / name).mkdir()
        save_file({"m.weight": tensor}, tmp_path / name / "model.safetensors")
    with open_tensors(tmp_path / "suspect") as suspect, open_tensors(tmp_path / "base") as base:
        with pytest.raises(DataInvalid):
            project(ModelSuspect(suspect, base), [reference])
        with pytest.raises(DataInvalid, match="base model lacks"):
            project(ModelSuspect(suspect, _Empty()), [reference])  # type: ignore[arg-type]


class _Empty:
    def find(self, name: str) -> None:
        return None


class _Base:
    def find(self, name: str) -> torch.Tensor:
        return torch.ones(6, 8)


def detection(suspect: Path) -> DetectJob:
    key = WatermarkKey(key_id="wmk_1", commitment="0" * 64, wrapped_key="", key_epoch=1)
    return DetectJob(
        run_id="mark_1", engine=EngineOptions(), isolation=IsolationSpec(), model_dir=str(suspect), key=key,
        model_sha256="0" * 64, suspect=str(suspect), escrow="", escrow_sha256="0" * 64, keys_tested=1, agent_socket="",
    )  # fmt: skip


def test_a_suspect_of_which_nothing_is_compared_is_refused(tmp_path: Path, reference: Reference) -> None:
    """ "Not found" said that it bears no mark; its layers only had other names."""
    renamed = {name.replace("model.m.", "model.other.m."): tensor for name, tensor in tensors().items()}
    suspects: list[Any] = [AdapterSuspect(read_adapter(write(tmp_path, renamed)))]
    suspects.append(ModelSuspect(_Empty(), _Base()))  # type: ignore[arg-type]
    for suspect in suspects:
        with pytest.raises(DataInvalid, match="none of the layers"):
            project(suspect, [reference])
    nothing = replace(reference, s=reference.s * 0)
    assert project(suspects[0], [nothing]).norm == 0


def test_a_model_that_has_a_tensor_twice_is_refused(tmp_path: Path) -> None:
    """The detector looked at the one in the last file, the engine that serves it may take the other."""
    for name in ("model-1.safetensors", "model-2.safetensors"):
        save_file({"m.weight": torch.ones(6, 8)}, tmp_path / name)
    with pytest.raises(DataInvalid, match="two of the files"), open_weights(tmp_path, tmp_path):
        pass
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(DataInvalid, match="two sets of weights"), open_weights(tmp_path, tmp_path):
        pass


def test_a_worker_limits_its_memory_by_the_suspect_before_it_reads_anything(tmp_path: Path) -> None:
    """There is no evidence, so it ends where it would ask for the key, which comes before the suspect is opened."""
    (tmp_path / "adapter_model.safetensors").write_bytes(bytes(1000))
    (tmp_path / "job.json").write_bytes(to_json(detection(tmp_path)))
    code = (
        "import pathlib, resource, sys\n"
        "from appliance.jobs.rundir import RunDir\n"
        "from appliance.worker import watermark_detect as worker\n"
        "job = worker.JOB.model_validate_json(pathlib.Path(sys.argv[1]).read_bytes())\n"
        "try: worker.run(job, RunDir(pathlib.Path('/nowhere')))\n"
        "except FileNotFoundError: print(*resource.getrlimit(resource.RLIMIT_DATA))\n"
    )
    command = [sys.executable, "-I", "-c", code, str(tmp_path / "job.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    soft, hard = map(int, done.stdout.split())
    assert soft == hard
    assert 4 << 30 < soft < (4 << 30) + 100_000


def test_a_worker_that_never_ends_with_a_suspect_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_SECONDS", 0.0)
    run_dir, suspect = RunDir(tmp_path / "run"), tmp_path / "suspect"
    run_dir.path.mkdir()
    suspect.mkdir()
    desk: Any = SimpleNamespace(record=lambda entry: 0, prove=lambda index: b"")
    markable: Any = SimpleNamespace(run=SimpleNamespace(id="run_1"), model_dir=suspect)
    with pytest.raises(WillNotFit, match="the worker was stopped"):
        marking.run_job(desk, markable, detection(suspect), run_dir, DetectResult)
    launch.wait_for_workers(run_dir, wait_s=0)
    assert not run_dir.result.exists()
