"""The memory benchmark for a GPU, on the CPU with a small model of each kind and a stand-in for the GPU's counters."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from appliance.estimate import gpu_memory, gpus
from appliance.estimate.gpu_memory import CONTEXT
from appliance.estimate.memory import footprint
from appliance.estimate.parts import PIECE_ROWS
from tests.nvml import H100
from tests.shapes import MODELS, llama, on_meta

BENCH = Path(__file__).resolve().parents[3] / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    spec = importlib.util.spec_from_file_location("gpu_memory", BENCH / "gpu_memory.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_memory", module)  # dataclasses look their module up
    before = list(sys.path)
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = before


class Counters:
    """Stands for the GPU: it has handed out and kept what it is told."""

    def start(self) -> None:
        pass

    def synchronise(self) -> None:
        pass

    def peaks(self) -> dict[str, int]:
        return {"allocated": 2 << 30, "reserved": 3 << 30, "context": 1 << 29}


def small(case: Any) -> Any:
    case.tokens, case.max_tokens = 128, 64
    return case


def test_every_kind_of_case_runs(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, config in MODELS.items():
        shrunk = llama(64, 2, 128, 30000, 4, 4 if config["num_key_value_heads"] == config["num_attention_heads"] else 2)
        made = {**config, **{key: shrunk[key] for key in shrunk if key not in ("model_type", "tie_word_embeddings")}}
        if "kv_lora_rank" in config:
            made |= {
                "q_lora_rank": 16,
                "kv_lora_rank": 16,
                "qk_rope_head_dim": 8,
                "qk_nope_head_dim": 8,
                "v_head_dim": 8,
            }
        if "head_dim" in config:
            made["head_dim"] = 16
        monkeypatch.setitem(MODELS, name, made)
    monkeypatch.setattr(bench, "gigaflops", lambda device, dtype: 100.0)
    kinds = {(case.model, case.dtype, case.checkpointing, case.lora.get("quantize_base")): case for case in bench.CASES}
    assert len({kind[1:] for kind in kinds}) == 6
    cases = [small(case) for case in kinds.values()]
    found = bench.rows(cases, "cpu", Counters())
    assert [row.get("failed") for row in found] == [None] * len(cases)
    for row in found:
        assert row["driver"] == (3 << 10) + (1 << 9)
        assert row["said"] > 0 < row["tokens_per_second"]
        assert {"CONTEXT", "WORKSPACE", "HELD", "share_of_rate"} <= set(row)


def test_what_a_gpu_held_for_the_measured_cases_is_forecast_within_five_percent(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PIECE_ROWS, "cuda", bench.PIECE_THEN)
    known = [case for case in bench.CASES if case.held]
    errors = [forecast(case) / (CONTEXT + (case.held << 20)) - 1 for case in known]
    assert len(errors) == 17
    assert max(map(abs, errors)) < 0.05
    # Each constant is needed for that.
    for name in ("WORKSPACE", "RECORDED"):
        with monkeypatch.context() as changed:
            changed.setattr(gpu_memory, name, 0)
            assert max(abs(forecast(case) / (CONTEXT + (case.held << 20)) - 1) for case in known) > 0.05
    monkeypatch.setattr(gpu_memory, "WORKSPACE", 570 << 20)  # fitted with the gap of the logits in it
    monkeypatch.setattr(gpu_memory, "gap_bytes", lambda _: 0)
    assert max(abs(forecast(case) / (CONTEXT + (case.held << 20)) - 1) for case in known) > 0.1


def forecast(case: Any) -> int:
    """Bytes of the GPU that the closed form says."""
    return footprint(case.workload(on_meta(MODELS[case.model], getattr(torch, case.dtype)), "cuda")).total


def test_a_case_that_fails_does_not_end_the_others(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "gigaflops", lambda device, dtype: 100.0)
    found = bench.rows([bench.Case(model="none"), bench.Case(model="none")], "cpu", Counters())
    assert [row["failed"] for row in found] == ["KeyError: 'none'"] * 2


def test_what_the_counters_of_a_gpu_mean(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    free = iter([H100.free, H100.free - (5 << 30)])
    monkeypatch.setattr(gpus, "visible", lambda: [replace(H100, free=next(free))])
    counters = {"max_memory_allocated": 3, "max_memory_reserved": 4, "memory_reserved": 4 << 30}
    for name, value in counters.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (60 << 30, 80 << 30))
    assert bench.Meter().peaks() == {"allocated": 3, "reserved": 4, "context": 1 << 30}
    monkeypatch.setattr(gpus, "visible", lambda: None)
    assert bench.Meter().peaks()["context"] == 16 << 30  # all that is taken of the GPU is then taken for ours


def test_without_a_gpu_it_ends_with_an_error() -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(BENCH / "memory.py"), "--device", "cuda", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert not done.stdout or json.loads(done.stdout)
