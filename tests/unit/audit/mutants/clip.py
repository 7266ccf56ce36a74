"""Faults of the clip and of the sum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from appliance.train import clipping
from appliance.train.clipping import ExactSum
from appliance.train.engine import Engine
from appliance.train.optimizer import ExactDPOptimizer
from appliance.train.tap import ReleaseTap
from tests.unit.audit.mutants.noise import add_noise, source
from tests.unit.audit.mutants.registry import NORMALISED, Patch, mutant

add, factors, take, norms, accumulate = ExactSum.add, ExactSum.factors, ExactSum.take, clipping.norms, Engine.accumulate
init = ExactSum.__init__


def multiplied(patch: Patch, by: Callable[[ExactSum, Tensor], Any]) -> None:
    """Multiplies the clip factors of the rows."""
    patch.setattr(ExactSum, "factors", lambda self, rows: factors(self, rows) * by(self, rows))


def measured(patch: Patch, change: Callable[[Tensor], Tensor]) -> None:
    """Passes the norms of rows through `change`."""
    patch.setattr(clipping, "norms", lambda rows: change(norms(rows)))


def left_out(patch: Patch, start: int, stop: int) -> None:
    """Leaves columns out of the norm."""

    def partial(rows: Tensor) -> Tensor:
        seen = torch.where(torch.isfinite(rows), rows, torch.inf)
        seen[:, start:stop] *= torch.isinf(seen[:, start:stop])
        return norms(seen.nan_to_num(nan=0.0, posinf=torch.inf))

    patch.setattr(clipping, "norms", partial)


@mutant("replay.directions")
def no_clip(patch: Patch, tap: ReleaseTap) -> None:
    def free(self: ExactSum, rows: Tensor) -> Tensor:
        return torch.where(factors(self, rows) > 0, 1 / self.grid, 0.0)

    patch.setattr(ExactSum, "factors", free)


@mutant("replay.directions")
def clip_at_twice_the_norm(patch: Patch, tap: ReleaseTap) -> None:
    multiplied(patch, lambda total, rows: 2)


@mutant("replay.directions")
def a_norm_that_is_half_a_percent_low(patch: Patch, tap: ReleaseTap) -> None:
    multiplied(patch, lambda total, rows: 1.0057)


@mutant("replay.columns")
def a_norm_that_is_one_part_in_ten_thousand_low(patch: Patch, tap: ReleaseTap) -> None:
    multiplied(patch, lambda total, rows: 1.0001)


@mutant("replay.columns")
def a_clip_that_starts_too_late(patch: Patch, tap: ReleaseTap) -> None:
    def late(self: ExactSum, rows: Tensor) -> Tensor:
        return torch.where(norms(rows) < 1.5 * tap.clip_norm, 1 / self.grid, factors(self, rows).double()).float()

    patch.setattr(ExactSum, "factors", late)


@mutant("replay.directions")
def norms_beyond_a_thousand_pass(patch: Patch, tap: ReleaseTap) -> None:
    measured(patch, lambda found: torch.where(torch.isfinite(found), found.clamp(max=1000.0), found))


@mutant("replay.columns")
def norms_in_bfloat16(patch: Patch, tap: ReleaseTap) -> None:
    measured(patch, lambda found: found.bfloat16().double())


@mutant("replay.columns", NORMALISED)
def norms_in_bfloat16_where_clipping_is_normalised(patch: Patch, tap: ReleaseTap) -> None:
    measured(patch, lambda found: found.bfloat16().double())


@mutant("replay.columns", NORMALISED)
def norms_in_float16_where_clipping_is_normalised(patch: Patch, tap: ReleaseTap) -> None:
    measured(patch, lambda found: torch.where(found < 6e4, found.half().double(), found))


@mutant("replay.columns", NORMALISED)
def normalised_clipping_of_another_constant(patch: Patch, tap: ReleaseTap) -> None:
    measured(patch, lambda found: found - 0.005)


@mutant("replay.directions")
def a_norm_of_largest_values(patch: Patch, tap: ReleaseTap) -> None:
    patch.setattr(clipping, "norms", lambda rows: rows.abs().max(1).values.double())


@mutant("replay.dense")
def clip_per_tensor(patch: Patch, tap: ReleaseTap) -> None:
    def each(self: ExactSum, rows: Tensor) -> None:
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
    def first(self: ExactSum, rows: Tensor) -> Tensor:
        made = factors(self, rows)
        made[1:] = 1 / self.grid
        return made

    patch.setattr(ExactSum, "factors", first)


@mutant("replay.directions")
def a_row_is_clipped_by_its_neighbours_norm(patch: Patch, tap: ReleaseTap) -> None:
    patch.setattr(ExactSum, "factors", lambda self, rows: factors(self, rows).roll(1))


@mutant("replay.directions")
def a_tensor_left_out_of_the_norm(patch: Patch, tap: ReleaseTap) -> None:
    left_out(patch, *tap.tensors[3][1:])


@mutant("replay.directions")
def the_second_half_left_out_of_the_norm(patch: Patch, tap: ReleaseTap) -> None:
    left_out(patch, tap.parameters // 2, tap.parameters)


@mutant("replay.directions")
def the_last_tensor_left_out_of_the_norm(patch: Patch, tap: ReleaseTap) -> None:
    left_out(patch, tap.tensors[-1][1], tap.parameters)


@mutant("replay.columns")
def one_column_left_out_of_the_norm(patch: Patch, tap: ReleaseTap) -> None:
    left_out(patch, 1234, 1235)


@mutant("replay.alone")
def the_last_column_left_out_of_the_norm(patch: Patch, tap: ReleaseTap) -> None:
    left_out(patch, tap.parameters - 1, tap.parameters)


@mutant("replay.non-finite")
def values_that_are_not_finite_pass(patch: Patch, tap: ReleaseTap) -> None:
    patch.setattr(torch, "nan_to_num_", lambda values, **_: values)


@mutant("replay.non-finite")
def a_row_that_is_not_finite_takes_its_neighbours_with_it(patch: Patch, tap: ReleaseTap) -> None:
    def all_or_none(self: ExactSum, rows: Tensor) -> Tensor:
        made = factors(self, rows)
        return made * made.all()

    patch.setattr(ExactSum, "factors", all_or_none)


# --- sum ------------------------------------------------------------------------------------------------------------


@mutant("replay.columns")
def every_micro_batch_summed_twice(patch: Patch, tap: ReleaseTap) -> None:
    patch.setattr(ExactSum, "add", lambda self, rows: (add(self, rows.clone()), add(self, rows)))


@mutant("replay.columns")
def the_sum_of_the_step_before_stays(patch: Patch, tap: ReleaseTap) -> None:
    patch.setattr(ExactSum, "take", lambda self: self._sum[: tap.parameters].clone())


@mutant("replay.sum")
def a_sum_in_single_precision(patch: Patch, tap: ReleaseTap) -> None:
    def add_single(self: ExactSum, rows: Tensor) -> None:
        add(self, rows)
        self._sum.copy_(self._sum.float())

    patch.setattr(ExactSum, "add", add_single)


@mutant("replay.sum")
def a_sum_that_ends_at_two_to_the_twenty_fourth(patch: Patch, tap: ReleaseTap) -> None:
    def ending(self: ExactSum, rows: Tensor) -> None:
        add(self, rows)
        self._sum.clamp_(-(2.0**24), 2.0**24)

    patch.setattr(ExactSum, "add", ending)


@mutant("replay.columns")
def values_are_cut_instead_of_rounded(patch: Patch, tap: ReleaseTap) -> None:
    patch.setattr(Tensor, "round_", Tensor.trunc_)


@mutant("replay.sum")
def values_are_not_rounded(patch: Patch, tap: ReleaseTap) -> None:
    patch.setattr(Tensor, "round_", lambda values: values)


@mutant("replay.columns")
def the_last_row_of_a_micro_batch_is_lost(patch: Patch, tap: ReleaseTap) -> None:
    patch.setattr(ExactSum, "add", lambda self, rows: add(self, rows[: max(1, len(rows) - 1)]))


@mutant("replay.records")
def every_record_of_a_real_pass_counts_three_times(patch: Patch, tap: ReleaseTap) -> None:
    batches = Engine._micro_batches

    def thrice(self: Engine, numbered: Any) -> Any:
        real = any(len(record.ids) > 1 for _, record in numbered)
        for batch in batches(self, numbered):
            yield from [batch] * (3 if real else 1)

    patch.setattr(Engine, "_micro_batches", thrice)


@mutant("replay.records")
def records_of_a_real_pass_are_mixed(patch: Patch, tap: ReleaseTap) -> None:
    gradients = Engine.gradients

    def mixed(self: Engine, batch: Any, *rest: Any, **more: Any) -> Tensor:
        rows = gradients(self, batch, *rest, **more)
        rows[:-1] += 0.2 * rows[1:].clone()
        return rows

    patch.setattr(Engine, "gradients", mixed)


# --- what follows the number of records -----------------------------------------------------------------------------


def counted(patch: Patch) -> list[int]:
    """The rows that were added since the logical batch began."""
    seen = [0]

    def counting(self: ExactSum, rows: Tensor) -> None:
        seen[0] += len(rows)
        add(self, rows)

    def fresh(self: Engine, units: Any) -> None:
        seen[0] = 0
        accumulate(self, units)

    patch.setattr(ExactSum, "add", counting)
    patch.setattr(Engine, "accumulate", fresh)
    return seen


@mutant("noise.applied")
def division_by_the_actual_batch_size(patch: Patch, tap: ReleaseTap) -> None:
    seen = counted(patch)

    def scale(self: ExactDPOptimizer) -> None:
        for parameter in self.params:
            if parameter.grad is not None:
                parameter.grad /= max(1, seen[0])

    patch.setattr(ExactDPOptimizer, "scale_grad", scale)


@mutant("noise.applied")
def noise_that_follows_the_number_of_records(patch: Patch, tap: ReleaseTap) -> None:
    seen = counted(patch)

    def following(self: ExactDPOptimizer) -> None:
        kept = self._noise
        self._noise = source(lambda noise, count: noise.draw(count) * (8 + seen[0]) / 8, self)
        add_noise(self)
        self._noise = kept

    patch.setattr(ExactDPOptimizer, "add_noise", following)
