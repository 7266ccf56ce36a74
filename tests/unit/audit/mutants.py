"""Faults put into the production classes, one at a time. Each makes the accounted epsilon false."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from appliance.train import clipping
from appliance.train.clipping import ExactSum
from appliance.train.engine import Engine
from appliance.train.noise import DiscreteGaussian
from appliance.train.optimizer import ExactDPOptimizer
from appliance.train.tap import ReleaseTap

draw, add, factors = DiscreteGaussian.draw, ExactSum.add, ExactSum.factors
take, norms, add_noise = ExactSum.take, clipping.norms, ExactDPOptimizer.add_noise
accumulate, scale_grad = Engine.accumulate, ExactDPOptimizer.scale_grad


class Patch(Protocol):
    """pytest's monkeypatch, or what stands for it."""

    def setattr(self, target: Any, name: str, value: Any) -> None: ...


@dataclass(frozen=True)
class Mutant:
    """A fault and the check that has to see it; others may see it too."""

    name: str
    seen_by: str
    put_in: Callable[[Patch, ReleaseTap], None]


MUTANTS: list[Mutant] = []


def mutant(seen_by: str) -> Callable[[Callable[[Patch, ReleaseTap], None]], None]:
    def register(put_in: Callable[[Patch, ReleaseTap], None]) -> None:
        MUTANTS.append(Mutant(put_in.__name__, seen_by, put_in))

    return register


def noise(patch: Patch, change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]) -> None:
    """Passes every noise vector through `change`."""
    patch.setattr(DiscreteGaussian, "draw", lambda self, count: change(draw(self, count)).astype(np.int64))


def multiplied(patch: Patch, by: Callable[[ExactSum, torch.Tensor], Any]) -> None:
    """Multiplies the clip factors of the rows."""
    patch.setattr(ExactSum, "factors", lambda self, rows: factors(self, rows) * by(self, rows))


# --- noise ----------------------------------------------------------------------------------------------------------


@mutant("noise.variance")
def noise_half(patch: Patch, tap: ReleaseTap) -> None:
    noise(patch, lambda n: n // 2)


@mutant("noise.variance")
def noise_times_095(patch: Patch, tap: ReleaseTap) -> None:
    noise(patch, lambda n: n * 0.95)


@mutant("noise.variance")
def noise_times_099(patch: Patch, tap: ReleaseTap) -> None:
    noise(patch, lambda n: n * 0.99)


@mutant("noise.variance")
def noise_of_a_mean_added_to_a_sum(patch: Patch, tap: ReleaseTap) -> None:
    noise(patch, lambda n: n / 8)


@mutant("noise.variance")
def noise_added_twice(patch: Patch, tap: ReleaseTap) -> None:
    noise(patch, lambda n: n + np.random.default_rng().permutation(n))


@mutant("noise.tensors")
def one_tensor_without_noise(patch: Patch, tap: ReleaseTap) -> None:
    _, start, stop = tap.tensors[5]

    def change(n: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        n[start:stop] = 0
        return n

    noise(patch, change)


@mutant("noise.tensors")
def the_smallest_tensor_with_less_noise(patch: Patch, tap: ReleaseTap) -> None:
    _, start, stop = min(tap.tensors, key=lambda t: t[2] - t[1])

    def change(n: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        n[start:stop] = n[start:stop] * 0.8
        return n

    noise(patch, change)


@mutant("noise.shape")
def uniform_noise_of_the_same_deviation(patch: Patch, tap: ReleaseTap) -> None:
    width = 3**0.5 * tap.noise_std / tap.grid
    noise(patch, lambda n: np.random.default_rng().uniform(-width, width, len(n)))


@mutant("noise.shape")
def laplace_noise_of_the_same_deviation(patch: Patch, tap: ReleaseTap) -> None:
    noise(patch, lambda n: np.random.default_rng().laplace(0, tap.noise_std / tap.grid / 2**0.5, len(n)))


@mutant("noise.tails")
def noise_cut_off_at_three_deviations(patch: Patch, tap: ReleaseTap) -> None:
    most = 3 * tap.noise_std / tap.grid
    noise(patch, lambda n: n.clip(-most, most))


@mutant("noise.shape")
def noise_of_few_values(patch: Patch, tap: ReleaseTap) -> None:
    step = 0.5 * tap.noise_std / tap.grid
    noise(patch, lambda n: np.round(n / step) * step * 0.9897)  # as much variance as before


@mutant("noise.steps")
def noise_reused_every_step(patch: Patch, tap: ReleaseTap) -> None:
    kept: list[Any] = []

    def change(n: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        kept.append(n)
        return kept[0].copy()  # type: ignore[no-any-return]

    noise(patch, change)


@mutant("noise.steps")
def noise_reused_every_third_step_with_the_other_sign(patch: Patch, tap: ReleaseTap) -> None:
    kept: list[Any] = []

    def change(n: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        kept.append(n if len(kept) < 3 else -kept[-3])
        return kept[-1].copy()  # type: ignore[no-any-return]

    noise(patch, change)


@mutant("noise.steps")
def noise_that_remembers_the_step_before(patch: Patch, tap: ReleaseTap) -> None:
    kept: list[Any] = [0]

    def change(n: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        mixed = 0.995 * n + 0.0998749 * kept[0]
        kept[0] = mixed
        return mixed

    noise(patch, change)


@mutant("noise.cross-tensor")
def the_same_noise_for_every_tensor(patch: Patch, tap: ReleaseTap) -> None:
    def change(n: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.concatenate([n[: stop - start] for _, start, stop in tap.tensors])

    noise(patch, change)


@mutant("noise.shifts")
def a_keystream_that_starts_again(patch: Patch, tap: ReleaseTap) -> None:
    noise(patch, lambda n: np.resize(n[: len(n) // 2 - 77], len(n)))


@mutant("replay.empty")
def no_noise_on_the_empty_batch(patch: Patch, tap: ReleaseTap) -> None:
    def quiet(self: ExactDPOptimizer) -> None:
        empty, kept = not bool(self._summed.any()), self._noise  # type: ignore[union-attr]
        if empty:
            self._noise = type("Zeros", (), {"draw": lambda _, count: np.zeros(count, dtype=np.int64)})()
        add_noise(self)
        self._noise = kept

    patch.setattr(ExactDPOptimizer, "add_noise", quiet)


@mutant("noise.tensors")
def less_noise_where_there_are_records(patch: Patch, tap: ReleaseTap) -> None:
    def less(self: ExactDPOptimizer) -> None:
        kept = self._noise
        if bool(self._summed.any()):  # type: ignore[union-attr]
            halved = type("Less", (), {"draw": lambda _, count: (kept.draw(count) * 0.9).astype(np.int64)})
            self._noise = halved()
        add_noise(self)
        self._noise = kept

    patch.setattr(ExactDPOptimizer, "add_noise", less)


@mutant("replay.empty")
def a_step_without_records_is_skipped(patch: Patch, tap: ReleaseTap) -> None:
    def forgetting(self: ExactDPOptimizer) -> None:
        empty = not bool(self._summed.any())  # type: ignore[union-attr]
        add_noise(self)
        if empty:
            self._set_gradients(torch.zeros(tap.parameters))
            self._noised = torch.zeros(tap.parameters)

    patch.setattr(ExactDPOptimizer, "add_noise", forgetting)


@mutant("noise.variance")
def divided_by_the_batch_size_twice(patch: Patch, tap: ReleaseTap) -> None:
    patch.setattr(ExactDPOptimizer, "scale_grad", lambda self: (scale_grad(self), scale_grad(self)))


# --- what follows the number of records -----------------------------------------------------------------------------


def counted(patch: Patch) -> list[int]:
    """The rows that were added since the last step."""
    seen = [0]

    def counting(self: ExactSum, rows: torch.Tensor) -> None:
        seen[0] += len(rows)
        add(self, rows)

    patch.setattr(ExactSum, "add", counting)
    return seen


@mutant("replay.count")
def division_by_the_actual_batch_size(patch: Patch, tap: ReleaseTap) -> None:
    seen = counted(patch)

    def scale(self: ExactDPOptimizer) -> None:
        for parameter in self.params:
            if parameter.grad is not None:
                parameter.grad /= max(1, seen[0])

    def fresh(self: Engine, units: Any) -> None:
        seen[0] = 0
        accumulate(self, units)

    patch.setattr(Engine, "accumulate", fresh)
    patch.setattr(ExactDPOptimizer, "scale_grad", scale)


@mutant("replay.count")
def noise_that_follows_the_number_of_records(patch: Patch, tap: ReleaseTap) -> None:
    seen = counted(patch)

    def following(self: ExactDPOptimizer) -> None:
        kept, count = self._noise, seen[0]
        seen[0] = 0
        source = {"draw": lambda _, n: (kept.draw(n) * (8 + count) / 8).astype(np.int64)}
        self._noise = type("Following", (), source)()
        add_noise(self)
        self._noise = kept

    patch.setattr(ExactDPOptimizer, "add_noise", following)


# --- clip -----------------------------------------------------------------------------------------------------------


@mutant("replay.directions")
def no_clip(patch: Patch, tap: ReleaseTap) -> None:
    def free(self: ExactSum, rows: torch.Tensor) -> torch.Tensor:
        factors(self, rows)
        return torch.full((len(rows),), 1 / self.grid)

    patch.setattr(ExactSum, "factors", free)


@mutant("replay.directions")
def clip_at_twice_the_norm(patch: Patch, tap: ReleaseTap) -> None:
    multiplied(patch, lambda total, rows: 2)


@mutant("replay.dense")
def a_norm_that_is_half_a_percent_low(patch: Patch, tap: ReleaseTap) -> None:
    multiplied(patch, lambda total, rows: 1.0057)


@mutant("replay.moderate")
def a_clip_that_starts_too_late(patch: Patch, tap: ReleaseTap) -> None:
    def late(self: ExactSum, rows: torch.Tensor) -> torch.Tensor:
        found = norms(rows)
        return torch.where(found < 1.5 * tap.clip_norm, 1 / self.grid, factors(self, rows).double()).float()

    patch.setattr(ExactSum, "factors", late)


@mutant("replay.dense")
def clip_per_tensor(patch: Patch, tap: ReleaseTap) -> None:
    def each(self: ExactSum, rows: torch.Tensor) -> None:
        for _, start, stop in tap.tensors:
            part = torch.zeros_like(rows)
            part[:, start:stop] = rows[:, start:stop]
            add(self, part)

    patch.setattr(ExactSum, "add", each)


@mutant("replay.opposed")
def clip_of_the_micro_batch_sum(patch: Patch, tap: ReleaseTap) -> None:
    patch.setattr(ExactSum, "add", lambda self, rows: add(self, rows.sum(0, keepdim=True)))


@mutant("replay.directions")
def only_the_first_row_is_clipped(patch: Patch, tap: ReleaseTap) -> None:
    def first(self: ExactSum, rows: torch.Tensor) -> torch.Tensor:
        made = factors(self, rows)
        made[1:] = 1 / self.grid
        return made

    patch.setattr(ExactSum, "factors", first)


def left_out(patch: Patch, start: int, stop: int) -> None:
    def partial(self: ExactSum, rows: torch.Tensor) -> torch.Tensor:
        seen = rows.clone()
        seen[:, start:stop] = 0
        made = factors(self, seen)
        rows[~torch.isfinite(rows).all(1)] = 0
        return made

    patch.setattr(ExactSum, "factors", partial)


@mutant("replay.directions")
def a_tensor_left_out_of_the_norm(patch: Patch, tap: ReleaseTap) -> None:
    left_out(patch, *tap.tensors[3][1:])


@mutant("replay.directions")
def the_second_half_left_out_of_the_norm(patch: Patch, tap: ReleaseTap) -> None:
    left_out(patch, tap.parameters // 2, tap.parameters)


@mutant("replay.directions")
def the_end_of_the_last_tensor_left_out_of_the_norm(patch: Patch, tap: ReleaseTap) -> None:
    left_out(patch, tap.tensors[-1][1], tap.parameters)


@mutant("replay.unit")
def records_clipped_instead_of_units(patch: Patch, tap: ReleaseTap) -> None:
    patch.setattr(
        Engine, "accumulate", lambda self, units: accumulate(self, [[record] for unit in units for record in unit])
    )


@mutant("replay.non-finite")
def values_that_are_not_finite_pass(patch: Patch, tap: ReleaseTap) -> None:
    patch.setattr(torch, "nan_to_num_", lambda values, **_: values)


@mutant("replay.directions")
def every_micro_batch_summed_twice(patch: Patch, tap: ReleaseTap) -> None:
    patch.setattr(ExactSum, "add", lambda self, rows: (add(self, rows.clone()), add(self, rows)))


@mutant("replay.directions.spill")
def the_sum_of_the_step_before_stays(patch: Patch, tap: ReleaseTap) -> None:
    patch.setattr(ExactSum, "take", lambda self: self._sum[: tap.parameters].clone())


@mutant("replay.records")
def every_record_of_a_real_pass_counts_three_times(patch: Patch, tap: ReleaseTap) -> None:
    gradients = Engine._micro_batches

    def thrice(self: Engine, numbered: Any) -> Any:
        real = any(len(record.ids) > 1 for _, record in numbered)
        for batch in gradients(self, numbered):
            yield from [batch] * (3 if real else 1)

    patch.setattr(Engine, "_micro_batches", thrice)
