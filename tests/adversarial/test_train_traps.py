"""The traps others fell into: each fault is put back and seen, and the room is shown not to have it."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from appliance.errors import GateFailed
from appliance.jobs.job import EngineOptions
from appliance.jobs.train import TrainJob
from appliance.train import engine as engine_module
from appliance.train import loop, mechanism, running
from appliance.train.coupling import is_coupled, uncouple
from appliance.train.loss import hidden_gradient
from appliance.train.noise import DiscreteGaussian
from appliance.train.optimizer import ExactDPOptimizer, Noise
from appliance.train.proofs import prove_exact
from tests.unit.train import rig
from tests.unit.train.rig import clipped, encoded, engine, total


@pytest.fixture(params=sorted(rig.VARIANTS), autouse=True)
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every trap under every option of the engine."""
    monkeypatch.setattr(rig, "variant", rig.VARIANTS[request.param])


def optimizer(made: Any, noise: Any = None, **changes: Any) -> ExactDPOptimizer:
    return ExactDPOptimizer(made.adapter, made.sum, noise or rig.NoNoise(), rig.plan(**changes), lr=0.01)


def norm_of(integers: torch.Tensor, grid: float) -> float:
    return float(integers.double().norm()) * grid


def change_losses(monkeypatch: pytest.MonkeyPatch, made: Any, change: Any) -> None:
    """Plant a fault in the losses: `change` gets their gradient [rows, length, width] and the records."""

    def changed(batch: Any, *rest: Any, **more: Any) -> torch.Tensor:
        with monkeypatch.context() as patch:
            patch.setattr(engine_module, "hidden_gradient", lambda *given: change(hidden_gradient(*given), batch))
            return type(made).gradients(made, batch, *rest, **more)

    monkeypatch.setattr(made, "gradients", changed)


# --- records couple -------------------------------------------------------------------------------------------------


def test_token_mean_loss_couples(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine(tiny_model_dir)
    few, many = encoded(16, 1, supervised=4), encoded(16, 2, supervised=14)
    honest = clipped(made, [few])[0]
    assert torch.equal(clipped(made, [few, many])[0], honest)
    assert not is_coupled(made)

    def token_mean(batch: Any) -> list[float]:
        tokens = sum(len(r.positions) for r in batch)
        return [len(r.positions) / tokens for r in batch]

    def record_mean(batch: Any) -> list[float]:  # a mean over the batch whose gradient is not multiplied by its size
        return [1 / len(batch) for _ in batch]

    for share in (token_mean, record_mean):

        def weighted(gradient: torch.Tensor, batch: Any, share: Any = share) -> torch.Tensor:
            return gradient * torch.tensor([*share(batch), *[0.0] * (len(gradient) - len(batch))])[:, None, None]

        change_losses(monkeypatch, made, weighted)
        assert is_coupled(made)
        with pytest.raises(GateFailed):
            prove_exact(made)


def test_a_head_that_tells_rows_apart_is_asked_one_record_at_a_time(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The fault: a product whose last bits depend on the row, in a piece that several records share.
    made = engine(tiny_model_dir, random_b=False)
    product = made._head.forward
    monkeypatch.setattr(
        made._head, "forward", lambda x: product(x) * (1 + 1e-5 * (torch.arange(len(x)) % 5))[:, None].to(x.dtype)
    )
    rig_b(made)
    assert is_coupled(made)
    assert not uncouple(made).shared
    assert not is_coupled(made)


def rig_b(made: Any) -> None:
    for site in made.adapter.sites:
        site.b.data.normal_(0, 0.02, generator=torch.Generator().manual_seed(1))


def test_padding_to_the_longest_neighbour_couples(tiny_model_dir: Path) -> None:
    made = engine(tiny_model_dir, torch.bfloat16)

    def padded(record: Any, length: int) -> torch.Tensor:
        return clipped(made, [type(record)(record.ids, record.positions, length)])[0]

    records = [encoded(n, 1) for n in (8, 40, 60, 100)]
    assert not all(torch.equal(clipped(made, [record])[0], padded(record, 256)) for record in records)
    made._least = 8  # long enough for real models; the adapter of this one is very small
    # So the padded length is the record's own, and records of several lengths never share a micro-batch.
    lengths: list[int] = []
    body = made._body
    made._body = lambda **kw: lengths.append(kw["input_ids"].shape[1]) or body(**kw)  # type: ignore[assignment, func-returns-value]
    total(made, [[encoded(15, 1)], [encoded(60, 2)], [encoded(16, 3)]])
    assert lengths == [16, 64]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_unit_more_changes_the_sum_by_exactly_its_own_gradient(tiny_model_dir: Path, dtype: torch.dtype) -> None:
    made = engine(tiny_model_dir, dtype)
    others = [[encoded(8 + 3 * i, i)] for i in range(12)]
    extra = [encoded(20, 99)]
    without, alone = total(made, others), total(made, [extra])
    assert torch.equal(total(made, [*others[:5], extra, *others[5:]]), without + alone)
    assert torch.equal(total(made, [*reversed(others), extra]), without + alone)
    assert 0 < norm_of(alone, made.sum.grid) <= 0.5


def test_summing_in_float32_would_depend_on_the_neighbours() -> None:
    rows = torch.randn(9, 4096, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(rows.sum(0) - rows[:-1].sum(0), rows[-1])


# --- clipping -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clipping", ["fixed", "normalised"])
@pytest.mark.parametrize("shape", ["gaussian", "equal", "one", "halves", "tiny"])
def test_no_clipped_gradient_exceeds_the_norm(tiny_model_dir: Path, clipping: Any, shape: str) -> None:
    made = engine(tiny_model_dir, clipping=clipping, max_grad_norm=0.7)
    width, parameters, gamma = made.buffer.width, made.adapter.parameters, made.sum.grid
    for scale in (1e-6, 0.7, 1.0, 3.3, 1e4, 1e15):
        row = torch.zeros(1, width)
        row[0, :parameters] = {
            "gaussian": torch.randn(parameters, generator=torch.Generator().manual_seed(1)),
            "equal": torch.ones(parameters),
            "one": torch.nn.functional.one_hot(torch.tensor(3), parameters).float(),
            "halves": (torch.arange(parameters) % 5 + 0.5) * gamma * 40,
            "tiny": torch.full((parameters,), 1e-30),
        }[shape]
        made.sum.add(row * scale)
        assert norm_of(made.sum.take(), gamma) <= 0.7


def test_clipping_in_bf16_would_exceed_the_norm() -> None:
    # What the guard and the float32 norm prevent: the same clip in bfloat16 breaks the bound.
    rows = torch.randn(64, 4096, generator=torch.Generator().manual_seed(0)).bfloat16()
    scaled = rows * (1.0 / (rows.norm(dim=1) + 1e-6)).clamp(max=1.0)[:, None]
    assert float(scaled.double().norm(dim=1).max()) > 1.0005


def test_without_the_guard_rounding_would_exceed_the_norm(tiny_model_dir: Path) -> None:
    made = engine(tiny_model_dir, max_grad_norm=1.0)
    parameters = made.adapter.parameters
    made.sum._bound = 1.0
    row = torch.zeros(1, made.buffer.width)
    # Every coordinate of the clipped vector lies just above a half-integer, so rounding goes up everywhere.
    level = math.floor(1 / math.sqrt(parameters) / made.sum.grid) + 0.51
    row[0, :parameters] = level * made.sum.grid * 1.01
    target = level * made.sum.grid * math.sqrt(parameters)
    made.sum._bound = target
    made.sum.add(row)
    assert norm_of(made.sum.take(), made.sum.grid) > target


def test_bf16_model_norm_never_exceeds(tiny_model_dir: Path) -> None:
    made = engine(tiny_model_dir, torch.bfloat16, max_grad_norm=0.01)
    for seed in range(6):
        rows = clipped(made, [encoded(24, seed), encoded(24, seed + 50)])
        assert all(0.0099 < norm_of(row, made.sum.grid) <= 0.01 for row in rows)


def test_nan_or_infinite_gradient_becomes_zero(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine(tiny_model_dir)
    good, poison = encoded(16, 1), encoded(16, 2)
    alone = total(made, [[good]])
    assert not torch.isfinite(torch.tensor(math.nan) * 0)  # a factor of zero would not do
    for value in (math.nan, math.inf, 1e38):

        def poisoned(gradient: torch.Tensor, batch: Any, value: float = value) -> torch.Tensor:
            gradient[[row for row, record in enumerate(batch) if record is poison]] *= value
            return gradient

        change_losses(monkeypatch, made, poisoned)
        assert torch.equal(total(made, [[good], [poison]]), alone)
        # In a unit of several records only the bad one is lost.
        assert torch.equal(total(made, [[good, poison]]), alone)


# --- silent layers and stale values ---------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_layer_that_does_not_report_is_found(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, checkpointing: bool
) -> None:
    made = engine(tiny_model_dir, options=EngineOptions(physical_tokens=256, gradient_checkpointing=checkpointing))
    made.gradients([encoded(16, 1)])
    monkeypatch.setattr(made.adapter.sites[5], "write", lambda *a: None)
    with pytest.raises(GateFailed, match="exactly once"):
        made.gradients([encoded(16, 1)])


def test_a_layer_that_reports_twice_is_found(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine(tiny_model_dir)
    site = made.adapter.sites[5]
    write = site.write
    monkeypatch.setattr(site, "write", lambda *a: (write(*a), write(*a)))
    with pytest.raises(GateFailed, match="exactly once"):
        made.gradients([encoded(16, 1)])


def test_nothing_stale_is_summed(tiny_model_dir: Path) -> None:
    made = engine(tiny_model_dir)
    first = total(made, [[encoded(16, 1)], [encoded(16, 2)], [encoded(16, 3)]])
    assert torch.equal(total(made, []), torch.zeros_like(first))
    assert torch.equal(total(made, [[encoded(16, 2)]]) + total(made, [[encoded(16, 1)], [encoded(16, 3)]]), first)
    assert all(p.grad is None for p in made.adapter.trainable)


def test_an_optimizer_of_other_tensors_is_found(tiny_model_dir: Path) -> None:
    from appliance.train.proofs import prove_moved

    made = engine(tiny_model_dir)
    stepped = optimizer(made, DiscreteGaussian(Fraction(10**10)))
    before = made.adapter.flatten([p.detach() for p in made.adapter.trainable])
    stepped.apply(stepped.release())
    prove_moved(made.adapter, stepped, before)
    with pytest.raises(GateFailed, match="did not move"):
        prove_moved(made.adapter, stepped, made.adapter.flatten([p.detach() for p in made.adapter.trainable]))
    # The silent failure: weights replaced after the optimiser was made.
    site = made.adapter.sites[0]
    layer = made.adapter.model.get_submodule(site.name)
    layer.lora_A["default"].weight = torch.nn.Parameter(site.a.detach().clone())  # type: ignore[index, union-attr]
    with pytest.raises(GateFailed, match="own trainable tensors"):
        prove_moved(made.adapter, stepped, before)


# --- the logical step -----------------------------------------------------------------------------------------------


def test_empty_batch_is_noise_and_nothing_else(tiny_model_dir: Path) -> None:
    made = engine(tiny_model_dir)
    made.accumulate([])

    class Known(Noise):
        def draw(self, count: int) -> Any:
            return np.arange(count, dtype=np.int64)

    released = optimizer(made, Known()).release()
    assert torch.equal(released, torch.arange(made.adapter.parameters).double().mul(made.sum.grid).float())


def test_divisor_is_the_public_batch_size(tiny_model_dir: Path) -> None:
    made = engine(tiny_model_dir)
    for units in (1, 5):
        made.accumulate([[encoded(16, i)] for i in range(units)])
        stepped = optimizer(made, expected_batch_size=8)
        released, seen = stepped.release(), []
        stepped.original_optimizer.step = lambda: seen.extend(p.grad.clone() for p in made.adapter.trainable)  # noqa: B023
        stepped.apply(released)
        assert torch.equal(made.adapter.flatten(seen), released / 8)


@pytest.mark.usefixtures("fixed_keys")
def test_noise_reaches_the_optimizer_once_with_the_standard_deviation_of_the_plan(tiny_model_dir: Path) -> None:
    from appliance.privacy.sampler import noise_variance

    made = engine(tiny_model_dir)
    source = DiscreteGaussian(noise_variance(1.3, 0.5, made.adapter.parameters))
    calls = []

    class Counting(Noise):
        def draw(self, count: int) -> Any:
            calls.append(count)
            return source.draw(count)

    stepped = optimizer(made, Counting(), noise_multiplier=1.3, max_grad_norm=0.5)
    units = [[encoded(8 + 4 * i, i)] for i in range(6)]
    drawn = []
    for _ in range(16):
        silent = total(made, units) * made.sum.grid
        made.accumulate(units)
        drawn.append(stepped.release() - silent.float())
        stepped.zero_grad()
    assert calls == [made.adapter.parameters] * 16
    values = torch.cat(drawn)  # few where A is frozen: five standard deviations of what so many values show
    assert values.std() == pytest.approx(1.3 * 0.5, rel=5 / math.sqrt(2 * len(values)))
    assert len(values) > 10_000
    assert not torch.equal(drawn[0], drawn[1])


def test_noise_is_not_rounded_to_the_dtype_of_the_gradients(tiny_model_dir: Path) -> None:
    made = engine(tiny_model_dir, torch.bfloat16)
    released = optimizer(made, DiscreteGaussian(Fraction(10**8))).release()
    units = released.double() / made.sum.grid
    assert released.dtype == torch.float32
    assert torch.equal(units, units.round())
    # The fault, noise in the gradients' dtype, leaves nothing but what eight bits hold.
    eight_bits = units.bfloat16().double() == units
    assert eight_bits.double().mean() < 0.3


def test_a_step_cannot_go_round_the_journal(tiny_model_dir: Path) -> None:
    made = engine(tiny_model_dir)
    with pytest.raises(GateFailed, match="journaled"):
        optimizer(made).step()


def test_noise_is_never_skipped_by_opacus_empty_check(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine(tiny_model_dir)
    monkeypatch.setattr(ExactDPOptimizer, "grad_samples", [])  # the fault: Opacus then skips clip and noise
    with pytest.raises(GateFailed, match="without noise"):
        optimizer(made).release()


# --- units of several records ---------------------------------------------------------------------------------------


def test_a_unit_is_clipped_as_one(tiny_model_dir: Path) -> None:
    made = engine(tiny_model_dir, max_grad_norm=0.01)
    unit = [encoded(n, n) for n in (16, 15, 40, 16, 60)]
    as_one, as_five = total(made, [unit]), total(made, [[record] for record in unit])
    assert norm_of(as_one, made.sum.grid) <= 0.01
    assert norm_of(as_five, made.sum.grid) > 0.01  # the fault: a unit that counts once for each of its records


def test_a_unit_is_bit_identical_whatever_the_other_units(tiny_model_dir: Path) -> None:
    made = engine(tiny_model_dir, torch.bfloat16)
    unit = [encoded(n, n) for n in (16, 15, 40, 16, 60)]
    others = [[encoded(n + k, 7 * n + k) for n in (14, 30)] for k in range(9)] + [[encoded(16, 5)]]
    alone, without = total(made, [unit]), total(made, others)
    assert torch.equal(total(made, [*others, unit]), without + alone)
    assert torch.equal(total(made, [unit, *others]), without + alone)


def test_unit_sums_spill_over_many_groups(tiny_model_dir: Path) -> None:
    made = engine(tiny_model_dir)
    units = [[encoded(10 + k % 3, k), encoded(20, k + 100)] for k in range(40)]
    assert len(units) > len(made.buffer.data)
    assert torch.equal(total(made, units), sum(total(made, [u]) for u in units))


def test_unit_gradient_is_the_sum_of_its_records(tiny_model_dir: Path) -> None:
    from appliance.train.proofs import reference_gradient

    made = engine(tiny_model_dir, max_grad_norm=1000.0)
    unit = [encoded(n, n) for n in (16, 40)]
    plain = sum(reference_gradient(made.adapter, record) for record in unit)
    got = total(made, [unit]).float() * made.sum.grid
    assert (got - plain).norm() <= made.sum.grid * math.sqrt(len(got)) / 2 + 1e-5 * plain.norm()  # type: ignore[union-attr]


# --- the seam of the tests ------------------------------------------------------------------------------------------


def test_no_job_reaches_the_test_seam() -> None:
    import inspect

    assert "sampler" in inspect.signature(loop.Trainer.__init__).parameters
    assert "noise" in inspect.signature(mechanism.assemble).parameters
    assert not {"sampler", "noise", "seed"} & set(inspect.signature(running.train).parameters)
    dumped = json.loads(rig.job(rig.plan()).model_dump_json(by_alias=True))
    assert "init_seed" in dumped["train"]
    for place in ((), ("plan",), ("train",), ("engine",)):
        for key in ("sampler", "noise", "seed", "noise_seed", "zero_noise"):
            broken = json.loads(json.dumps(dumped))
            target = broken
            for step in place:
                target = target[step]
            target[key] = 0
            with pytest.raises(ValueError, match="Extra inputs"):
                TrainJob.model_validate_json(json.dumps(broken))


def test_an_adapter_of_a_test_run_is_not_saved(tmp_path: Path) -> None:
    from appliance.train.trained import Trained, save_adapter

    with pytest.raises(GateFailed):
        save_adapter(Trained({}, {}, 1, 1, 1, private=False), tmp_path)
    assert not list(tmp_path.iterdir())


def test_small_bfloat16_products_would_couple_records(tiny_model_dir: Path) -> None:
    # torch takes another kernel for at most 16^3 multiplications: one record alone may fall under it, two may not.
    found = 0
    for seed in range(300):
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(32, 64, generator=generator).bfloat16()
        weight = (torch.randn(4, 64, generator=generator) * 0.02).bfloat16()
        found += not torch.equal((rows @ weight.t())[:16], rows[:16] @ weight.t())
        longer = torch.cat([rows, rows])
        assert torch.equal((torch.cat([longer, longer]) @ weight.t())[:64], longer @ weight.t())
    if not found:
        pytest.skip("not run: this machine's kernels agree on small products")
    made = engine(tiny_model_dir, torch.bfloat16)
    lengths: list[int] = []
    body = made._body
    made._body = lambda **kw: lengths.append(kw["input_ids"].shape[1]) or body(**kw)  # type: ignore[assignment, func-returns-value]
    clipped(made, [encoded(8, 1)])
    assert lengths[0] * 4 * 32 > 16**3
