"""Micro-batches by CUDA graphs: the bits of the calls themselves, or no graphs at all."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from appliance.jobs.job import EngineOptions
from appliance.jobs.lora import LoraSpec
from appliance.train import graphs
from appliance.train.adapting import adapt
from appliance.train.engine import Engine
from appliance.train.graphs import Graphs
from tests.unit.train import rig
from tests.unit.train.replaying import Recorded, pretend_graphs

Units = list[list[Any]]


def engine(directory: Path, *, by_graphs: bool) -> Engine:
    adapter = adapt(rig.load(directory), LoraSpec(r=4), 1)
    generator = torch.Generator().manual_seed(5)
    for site in adapter.sites:
        site.b.data.copy_(torch.randn(site.b.shape, generator=generator) * 0.1)
    made = Engine(adapter, rig.plan(), EngineOptions(physical_tokens=64), 0)
    made._graphs = Graphs(made._hidden) if by_graphs else None
    return made


def units(*seeds: int) -> Units:
    """Two records of 16 tokens and one of 32 for each seed: two shapes of micro-batch, which come again."""
    return [[rig.encoded(length, 10 * seed + n)] for seed in seeds for n, length in enumerate((16, 16, 32))]


def summed(made: Engine, batch: Units) -> Tensor:
    made.accumulate(batch)
    return made.sum.take()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the micro-batches that were computed by calls, not by a graph."""
    seen: list[tuple[int, ...]] = []
    real = Engine._call

    def call(self: Engine, ids: Tensor, gradient: Any) -> Tensor:
        seen.append(tuple(ids.shape))
        return real(self, ids, gradient)

    monkeypatch.setattr(Engine, "_call", call)
    return seen


def test_a_graph_gives_the_bits_of_the_calls_that_it_was_made_of(
    tiny_model_dir: Path, calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = pretend_graphs(monkeypatch)
    plain, replayed = engine(tiny_model_dir, by_graphs=False), engine(tiny_model_dir, by_graphs=True)
    batches = [units(1), units(2), units(3, 4)]
    expected = [summed(plain, batch) for batch in batches]
    assert len({tuple(one.tolist()) for one in expected}) == len(batches)
    calls.clear()
    assert all(torch.equal(summed(replayed, batch), one) for batch, one in zip(batches, expected, strict=True))
    # Each shape was called once, to be recorded; what came again was replayed.
    assert len(calls) == len(set(calls))
    assert len(made) == 2 * len(calls)
    assert all(graph.replays for graph in made)
    assert sum(graph.replays for graph in made[::2]) > len(calls)


def test_a_unit_of_several_records_is_summed_the_same(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_graphs(monkeypatch)
    plain, replayed = engine(tiny_model_dir, by_graphs=False), engine(tiny_model_dir, by_graphs=True)
    for seed in (1, 2):
        together = [[record for unit in units(seed) for record in unit], *units(seed + 5)]
        assert torch.equal(summed(replayed, together), summed(plain, together))


class Careless(Recorded):
    """A recording that leaves its last product out."""

    def replay(self) -> None:
        products = [n for n, step in enumerate(self.steps) if step[0] is torch.ops.aten.mm.default]
        kept = self.steps
        self.steps = [step for n, step in enumerate(kept) if n != products[-1]]
        for *_, out in [kept[products[-1]]]:
            out.zero_()
        super().replay()
        self.steps = kept


class Unrecordable(Recorded):
    """An operation that a graph does not take."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.silu.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        return super().__torch_dispatch__(func, types, args, kwargs)


@pytest.mark.parametrize("kind", [Careless, Unrecordable])
def test_a_graph_that_gives_other_bits_or_none_is_not_used(
    tiny_model_dir: Path, calls: list[Any], monkeypatch: pytest.MonkeyPatch, kind: type[Recorded]
) -> None:
    made = pretend_graphs(monkeypatch, kind)
    plain, careful = engine(tiny_model_dir, by_graphs=False), engine(tiny_model_dir, by_graphs=True)
    batches = [units(1), units(2)]
    expected = [summed(plain, batch) for batch in batches]
    computed = list(calls)
    calls.clear()
    assert all(torch.equal(summed(careful, batch), one) for batch, one in zip(batches, expected, strict=True))
    assert calls == computed
    assert careful._graphs is not None
    assert careful._graphs.refused
    assert len(made) == 2  # it was tried once
    assert gc.isenabled()


def test_what_a_careless_graph_would_have_given_is_noticed_by_the_comparison(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the comparison the sums differ: the test above can fail."""
    pretend_graphs(monkeypatch, Careless)
    monkeypatch.setattr("appliance.train.graphs.torch.equal", lambda *_: True)
    plain, careless = engine(tiny_model_dir, by_graphs=False), engine(tiny_model_dir, by_graphs=True)
    batches = [units(1), units(2)]
    pairs = [(summed(plain, batch), summed(careless, batch)) for batch in batches]
    assert any(bool((one != other).any()) for one, other in pairs)


def test_memory_that_ends_while_a_graph_runs_splits_the_batch_and_forgets_the_graphs(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = pretend_graphs(monkeypatch)
    plain, replayed = engine(tiny_model_dir, by_graphs=False), engine(tiny_model_dir, by_graphs=True)
    batches = [units(1, 2), units(3, 4)]  # four short records and two long ones: two full micro-batches
    expected = [summed(plain, batch) for batch in batches]
    assert torch.equal(summed(replayed, batches[0]), expected[0])
    assert [graph.replays for graph in made] == [1] * 4

    def no_memory() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(made[2], "replay", no_memory)
    forgotten: list[int] = []
    real = Graphs.forget
    monkeypatch.setattr(Graphs, "forget", lambda self: (forgotten.append(len(self._recordings)), real(self)))
    assert torch.equal(summed(replayed, batches[1]), expected[1])
    assert forgotten == [2]
    assert len(made) == 6  # half of the batch is a shape of its own
    assert [graph.replays for graph in made[4:]] == [2, 2]  # once to be compared, once for the second half


def test_proofs_are_computed_by_calls_and_shapes_are_bounded(
    tiny_model_dir: Path, calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_graphs(monkeypatch)
    made = engine(tiny_model_dir, by_graphs=True)
    record = rig.encoded(16, 1)
    ends = torch.ones(1, made.pad_length(16), made.width)
    for _ in range(2):
        made.gradients([record], upstream=ends)
    assert len(calls) == 2
    monkeypatch.setattr(graphs, "_MOST", 1)
    for _ in range(2):
        summed(made, units(1))
    assert made._graphs is not None
    assert len(made._graphs._recordings) == 1
