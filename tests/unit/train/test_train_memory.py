"""Memory that runs out in the middle of a step: the batch halves, the sum is the same, the attempt stays charged."""

from __future__ import annotations

import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from appliance.errors import WillNotFit, ran_out
from appliance.jobs.job import EngineOptions
from appliance.train import engine as engine_module
from tests.unit.train import rig
from tests.unit.train.rig import FixedSampler, MemoryJournal, MemorySnapshots, NoNoise, job, load, people, plan

CUBLAS = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
CPU = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to ..."
ERRORS: dict[str, Callable[[], BaseException]] = {
    "MemoryError": MemoryError,
    "GPU": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "CPU": lambda: RuntimeError(CPU),
    "cuBLAS": lambda: RuntimeError(CUBLAS),
    "driver": lambda: torch.AcceleratorError("CUDA error: out of memory"),
}


def limit(monkeypatch: pytest.MonkeyPatch, engine: Any, rows: int, error: Callable[[], BaseException]) -> list[int]:
    """No more rows than these fit, at the allocation of either end of the computation; the sizes that were tried."""
    begin, gradient, tried = engine.buffer.begin, engine_module.hidden_gradient, []

    def limited_begin(physical: int, *rest: Any) -> None:
        tried.append(physical)
        if physical > rows and len(tried) % 2:
            raise error()
        begin(physical, *rest)

    def limited_gradient(hidden: Any, *rest: Any, **more: Any) -> Any:
        if len(hidden) > rows:
            raise error()
        return gradient(hidden, *rest, **more)

    monkeypatch.setattr(engine.buffer, "begin", limited_begin)
    monkeypatch.setattr(engine_module, "hidden_gradient", limited_gradient)
    return tried


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_the_batch_halves_and_the_sum_is_the_same(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, error: Callable[[], BaseException]
) -> None:
    units = [[rig.encoded(12 + n % 3, n)] for n in range(16)]
    units += [[rig.encoded(20, 40 + n), rig.encoded(9, 60 + n)] for n in range(5)]
    engine = rig.engine(tiny_model_dir)
    expected = rig.total(engine, units)
    tried = limit(monkeypatch, engine, 3, error)
    assert torch.equal(rig.total(engine, units), expected)
    assert max(tried) > 3
    del tried[:]
    assert torch.equal(rig.total(engine, units), expected)
    assert max(tried) <= 3, "what did not fit once is not tried again"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"),
        ValueError("out of memory"),  # it may quote a record
    ],
)
def test_what_does_not_say_that_memory_ran_out(error: Exception) -> None:
    assert not ran_out(error)


def test_the_gpu_gets_back_what_the_failed_batch_held(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that pretends to be a GPU: its cache is emptied once nothing of the failed batch is alive any more."""
    engine = rig.engine(tiny_model_dir)
    forward, held, seen = engine._body.forward, [], []

    def remembered(*given: Any, **more: Any) -> Any:
        out = forward(*given, **more)
        held.append(weakref.ref(out.last_hidden_state))
        return out

    monkeypatch.setattr(engine._body, "forward", remembered)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: seen.append([one() is None for one in held]))
    tried = limit(monkeypatch, engine, 4, ERRORS["GPU"])
    tried.append(0)  # `limit` fails every other time at the start; here the forward pass has been made
    rig.total(engine, [[rig.encoded(12, n)] for n in range(8)])
    assert seen == [[True]]
    assert tried[1:] == [8, 4, 4]


def test_another_error_is_not_taken_for_memory(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = rig.engine(tiny_model_dir)
    limit(monkeypatch, engine, 0, lambda: RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes"):
        rig.total(engine, [[rig.encoded(12, 1)]])


def trainer(directory: Path, journal: Any, snapshots: Any, start: int = 0) -> Any:
    from transformers import AutoTokenizer

    return rig.trainer(
        job(plan(steps=3)), load(directory), AutoTokenizer.from_pretrained(directory), people(30), journal, snapshots,
        lambda public: None, sampler=FixedSampler(30, start=start), noise=NoNoise(),
    )  # fmt: skip


def test_a_run_goes_on_with_less_and_stops_resumable_when_one_record_does_not_fit(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = trainer(tiny_model_dir, MemoryJournal(), MemorySnapshots()).run()

    journal, snapshots = MemoryJournal(), MemorySnapshots()
    made = trainer(tiny_model_dir, journal, snapshots)
    deal = made._ranks.deal

    def deal_then_limit(*given: Any) -> Any:
        rows = {0: 2, 1: 0}[journal.state.steps]  # the first step fits with two records, the second with none
        limit(monkeypatch, made._engine, rows, MemoryError)
        return deal(*given)

    made._ranks.deal = deal_then_limit  # type: ignore[method-assign]
    with pytest.raises(WillNotFit):
        made.run()
    assert (journal.state.attempts, journal.state.steps) == (2, 1)
    monkeypatch.undo()

    out = trainer(tiny_model_dir, journal, snapshots, start=1).run()
    assert (out.attempts, out.steps) == (4, 3)
    assert all(torch.equal(out.state[name], expected.state[name]) for name in expected.state)


LIMITED = """
import resource, sys
import torch
from appliance.jobs.job import EngineOptions
from tests.unit.train import rig
torch.set_num_threads(1)
units = [[rig.encoded(500, n)] for n in range(32)]
engine = rig.engine(sys.argv[1], options=EngineOptions(physical_tokens=1 << 14))
rig.total(engine, [[rig.encoded(500, 99)]])  # what is loaded late is loaded
before = engine.rows_at(512)
virtual = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (virtual + (int(sys.argv[2]) << 20),) * 2)
found = rig.total(engine, units)
after = engine.rows_at(512)
print(before, after, hash(found.numpy().tobytes()))
"""


def limited(directory: Path, mebibytes: int) -> tuple[int, int, str]:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(directory), str(mebibytes)],
        capture_output=True, text=True, check=False, timeout=600, env={"PYTHONHASHSEED": "0", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    before, after, digest = done.stdout.split()
    return int(before), int(after), digest


def test_a_process_whose_memory_is_really_limited_gets_the_same_sum(tiny_model_dir: Path) -> None:
    assert EngineOptions().physical_tokens < 1 << 14
    plenty, little = limited(tiny_model_dir, 4096), limited(tiny_model_dir, 24)
    assert plenty[0] == plenty[1] == little[0] == 32
    assert little[1] < 32
    assert little[2] == plenty[2]
