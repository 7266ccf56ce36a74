"""What only a GPU asks of the engine, as far as it can be seen without one: settings, transfers, noise drawn ahead."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from appliance.errors import WillNotFit
from appliance.jobs.job import EngineOptions
from appliance.jobs.lora import LoraSpec
from appliance.jobs.train import TrainSpec
from appliance.models.loading import load_tokenizer
from appliance.train import device, memory
from appliance.train.machine import machine_digest
from appliance.train.mechanism import assemble
from appliance.train.noise import DiscreteGaussian, Integers
from appliance.train.rows import deal, overhead
from appliance.worker import confinement, train
from tests.unit.train import rig

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


@pytest.fixture
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the process computes with is afterwards as it was."""
    products, fill = torch.backends.cuda.matmul, torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    reduced, precision = products.allow_bf16_reduced_precision_reduction, torch.get_float32_matmul_precision()
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    yield
    torch.use_deterministic_algorithms(False)
    products.allow_bf16_reduced_precision_reduction = reduced
    torch.set_float32_matmul_precision(precision)
    torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


@pytest.mark.usefixtures("as_before")
def test_a_gpu_is_made_repeatable_and_a_cpu_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    products = torch.backends.cuda.matmul
    products.allow_bf16_reduced_precision_reduction = True
    torch.set_float32_matmul_precision("high")
    device.make_repeatable(CPU)
    assert not torch.are_deterministic_algorithms_enabled()
    device.make_repeatable(GPU)
    assert torch.are_deterministic_algorithms_enabled()
    assert not products.allow_bf16_reduced_precision_reduction
    assert torch.get_float32_matmul_precision() == "highest"
    assert device.os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_numbers_for_a_gpu_are_pinned_and_copied_without_waiting() -> None:
    done: list[Any] = []
    pinned = SimpleNamespace(to=lambda where, **how: done.append((where, how)))
    device.send(SimpleNamespace(pin_memory=lambda: pinned), GPU)  # type: ignore[arg-type]
    assert done == [(GPU, {"non_blocking": True})]
    numbers = torch.arange(3)
    assert device.send(numbers, CPU) is numbers


def test_memory_is_given_back_to_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given.append("back"))
    memory.give_back()
    assert not given
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    memory.give_back()
    assert given == ["back"]


def test_a_proof_holds_for_one_kind_of_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    card = {"name": "A100", "major": 8, "minor": 0, "multi_processor_count": 108}

    def digest(**changes: Any) -> str:
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(**card | changes))
        return machine_digest(GPU)

    found = [digest(), digest(name="H100"), digest(minor=9), digest(multi_processor_count=98), machine_digest(CPU)]
    assert digest() == found[0]
    assert len(set(found)) == len(found)


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the GPUs that ranks took, of two that there are."""
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(train, "load_base", lambda *_: ("model", "tokenizer"))
    return taken


def test_each_rank_takes_a_gpu_of_its_own(chosen: list[int]) -> None:
    job = rig.job(rig.plan(), options=EngineOptions(device="cuda"))
    for local in (0, 1):
        assert train._base(job, SimpleNamespace(rank=4 + local, local=local)) == ("model", "tokenizer")  # type: ignore[arg-type]
    with pytest.raises(WillNotFit, match="rank 6 has no GPU of its own"):
        train._base(job, SimpleNamespace(rank=6, local=2))  # type: ignore[arg-type]
    train._base(rig.job(rig.plan()), SimpleNamespace(rank=6, local=2))  # type: ignore[arg-type]
    assert chosen == [0, 1]


def test_a_job_on_the_cpu_asks_for_no_gpu_and_one_on_a_gpu_for_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    stand_in = SimpleNamespace(require=lambda: asked.append("driver"), gpu=lambda local: asked.append(local) or "gpu")
    monkeypatch.setattr(confinement, "gpus", stand_in)
    assert confinement.gpu_of(EngineOptions(), 1) is None
    assert not asked
    assert confinement.gpu_of(EngineOptions(device="cuda"), 1) == "gpu"
    assert asked == ["driver", 1]


def test_small_micro_batches_cost_a_gpu_more_so_they_are_filled() -> None:
    """Nine records of 128 tokens, where one or sixteen rows may be computed: one by one on a CPU, at once on a GPU."""
    assert deal(9, (16, 1), 128, overhead(CPU)) == [1] * 9
    assert deal(9, (16, 1), 128, overhead(GPU)) == [16]


class Watched(DiscreteGaussian):
    """Says in which thread what was drawn."""

    def __init__(self, *, ahead: bool) -> None:
        super().__init__(Fraction(10_000), ahead=ahead)
        self.drawn: list[tuple[bool, Integers]] = []

    def _draw(self, count: int) -> Integers:
        found = super()._draw(count)
        self.drawn.append((threading.current_thread() is threading.main_thread(), found))
        return found


def test_noise_that_was_begun_is_given_away_once() -> None:
    source = Watched(ahead=True)
    source.begin(50)
    first, second = source.draw(50), source.draw(50)
    assert [in_main for in_main, _ in source.drawn] == [False, True]
    assert first is source.drawn[0][1]
    assert not np.array_equal(first, second)
    source.begin(50)
    source.begin(50)  # a step that broke off: what was begun for it is dropped
    assert source.draw(50) is source.drawn[3][1]
    source.begin(50)
    assert len(source.draw(60)) == 60  # of another size: what was begun is dropped for good
    assert source._ahead
    source._ahead.submit(int).result()
    assert source.draw(50) is source.drawn[-1][1]
    assert source.drawn[-1][0]


def test_noise_on_a_cpu_is_drawn_when_it_is_asked_for() -> None:
    source = Watched(ahead=False)
    source.begin(50)
    assert not source.drawn
    source.draw(50)
    assert [in_main for in_main, _ in source.drawn] == [True]


def test_noise_that_cannot_be_drawn_ends_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    source = DiscreteGaussian(Fraction(100), ahead=True)

    def broken(count: int) -> Integers:
        raise OSError("no entropy")

    monkeypatch.setattr(source, "_draw", broken)
    source.begin(5)
    with pytest.raises(OSError, match="no entropy"):
        source.draw(5)


@pytest.mark.parametrize(("where", "ahead"), [("cuda", True), ("cpu", False)])
def test_a_mechanism_for_a_gpu_draws_its_noise_ahead(tiny_model_dir: Path, where: Any, ahead: bool) -> None:
    options = EngineOptions(device=where, physical_tokens=64)
    given = (rig.load(tiny_model_dir), load_tokenizer(tiny_model_dir))
    made = assemble(rig.plan(), LoraSpec(r=4), TrainSpec(lr=1e-2, max_tokens=32), options, *given)
    assert (made.optimizer._noise._ahead is not None) == ahead
