"""Faults of the sampling."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.train import loop, sampler
from appliance.train.loop import Trainer
from appliance.train.sampler import PoissonSampler
from appliance.train.tap import ReleaseTap
from tests.unit.audit.mutants.registry import PHASES, Patch, mutant

Batch = NDArray[np.int64]

draw, deal, below = PoissonSampler.draw, Trainer._deal, sampler.below


def sampled(patch: Patch, change: Callable[[PoissonSampler, Batch], Any]) -> None:
    """Passes every batch through `change`."""
    patch.setattr(PoissonSampler, "draw", lambda self: np.asarray(change(self, draw(self)), dtype=np.int64))


def rated(patch: Patch, change: Callable[[Fraction], Fraction]) -> None:
    """Samples at another rate."""
    patch.setattr(
        loop, "PoissonSampler", lambda units, rate: PoissonSampler(units, min(Fraction(1), Fraction(change(rate))))
    )


@mutant("sampler.sizes")
def batches_of_a_fixed_size(patch: Patch, tap: ReleaseTap) -> None:
    def fixed(self: PoissonSampler) -> Batch:
        size = round(self._units * float(self._rate))
        return np.sort(np.random.default_rng().choice(self._units, size, replace=False))

    patch.setattr(PoissonSampler, "draw", fixed)


@mutant("sampler.evenness")
def batches_of_a_shuffle(patch: Patch, tap: ReleaseTap) -> None:
    left: dict[int, Batch] = {}

    def shuffled(self: PoissonSampler, batch: Batch) -> Batch:
        size, rest = len(batch), left.get(id(self), np.empty(0, dtype=np.int64))
        if len(rest) < size:
            rest = np.concatenate([rest, np.random.default_rng().permutation(self._units)])
        left[id(self)] = rest[size:]
        return np.unique(rest[:size])

    sampled(patch, shuffled)


@mutant("sampler.rate")
def twice_the_rate(patch: Patch, tap: ReleaseTap) -> None:
    rated(patch, lambda rate: 2 * rate)


@mutant("sampler.rate")
def a_rate_that_is_two_percent_high(patch: Patch, tap: ReleaseTap) -> None:
    rated(patch, lambda rate: rate * Fraction(102, 100))


@mutant("sampler.rate")
def half_the_rate(patch: Patch, tap: ReleaseTap) -> None:
    rated(patch, lambda rate: rate / 2)


@mutant("sampler.rate")
def rates_are_rounded_to_sixteenths(patch: Patch, tap: ReleaseTap) -> None:
    rated(patch, lambda rate: Fraction(max(1, round(rate * 256)), 256))


@mutant("sampler.repeats")
def the_same_batch_every_time(patch: Patch, tap: ReleaseTap) -> None:
    kept: dict[int, Batch] = {}
    sampled(patch, lambda self, batch: kept.setdefault(id(self), batch))


@mutant("sampler.repeats")
def every_hundredth_batch_again(patch: Patch, tap: ReleaseTap) -> None:
    kept: list[Batch] = []

    def again(self: PoissonSampler, batch: Batch) -> Batch:
        kept.append(kept[-100] if len(kept) >= 100 and len(kept) % 2 and len(kept[-100]) > 5 else batch)
        return kept[-1] if kept[-1].max(initial=0) < self._units else batch

    sampled(patch, again)


@mutant("sampler.units")
def the_first_unit_is_always_in(patch: Patch, tap: ReleaseTap) -> None:
    sampled(patch, lambda self, batch: np.union1d(batch, [0]))


@mutant("sampler.units")
def the_last_unit_is_never_in(patch: Patch, tap: ReleaseTap) -> None:
    sampled(patch, lambda self, batch: batch[batch < self._units - 1])


@mutant("sampler.evenness")
def the_first_half_is_preferred(patch: Patch, tap: ReleaseTap) -> None:
    def preferring(self: PoissonSampler) -> Batch:
        rates = np.where(np.arange(self._units) * 2 < self._units, 1.2, 0.8) * float(self._rate)
        return np.flatnonzero(np.random.default_rng().random(self._units) < rates)

    patch.setattr(PoissonSampler, "draw", preferring)


@mutant("sampler.sizes")
def neighbours_share_a_coin(patch: Patch, tap: ReleaseTap) -> None:
    def paired(self: PoissonSampler) -> Batch:
        coins = np.random.default_rng().random(-(-self._units // 2)) < float(self._rate)
        return np.flatnonzero(np.repeat(coins, 2)[: self._units])

    patch.setattr(PoissonSampler, "draw", paired)


@mutant("sampler.overlap")
def units_of_the_batch_before_are_left_out(patch: Patch, tap: ReleaseTap) -> None:
    before: dict[int, Batch] = {}

    def others(self: PoissonSampler, batch: Batch) -> Batch:
        found = np.setdiff1d(batch, before.get(id(self), batch[:0]))
        more = np.setdiff1d(draw(self), np.concatenate([batch, before.get(id(self), batch[:0])]))
        before[id(self)] = np.sort(np.concatenate([found, more[: len(batch) - len(found)]]))
        return before[id(self)]

    sampled(patch, others)


@mutant("sampler.overlap")
def half_of_a_batch_stays_for_the_next(patch: Patch, tap: ReleaseTap) -> None:
    before: dict[int, Batch] = {}

    def sticky(self: PoissonSampler, batch: Batch) -> Batch:
        old = before.get(id(self), batch)
        coins = np.random.default_rng().random(self._units) < 0.5
        before[id(self)] = np.sort(np.concatenate([old[coins[old]], batch[~coins[batch]]]))
        return before[id(self)]

    sampled(patch, sticky)


@mutant("sampler.valid")
def sampling_with_replacement(patch: Patch, tap: ReleaseTap) -> None:
    def replaced(self: PoissonSampler, batch: Batch) -> Batch:
        return np.sort(np.random.default_rng().integers(0, self._units, len(batch)))

    sampled(patch, replaced)


@mutant("sampler.sizes")
def batches_are_cut_at_their_expected_size(patch: Patch, tap: ReleaseTap) -> None:
    sampled(patch, lambda self, batch: batch[: round(self._units * float(self._rate))])


@mutant("sampler.sizes")
def batches_that_are_too_small_are_drawn_again(patch: Patch, tap: ReleaseTap) -> None:
    def again(self: PoissonSampler, batch: Batch) -> Batch:
        return batch if len(batch) > 0.9 * self._units * float(self._rate) else draw(self)

    sampled(patch, again)


@mutant("loop.empty")
def an_empty_batch_is_drawn_again(patch: Patch, tap: ReleaseTap) -> None:
    def again(self: PoissonSampler, batch: Batch) -> Batch:
        while not len(batch):
            batch = draw(self)
        return batch

    sampled(patch, again)


@mutant("sampler.rate", PHASES)
def a_phase_is_sampled_from_the_units_of_the_first(patch: Patch, tap: ReleaseTap) -> None:
    patch.setattr(Trainer, "_deal", lambda self, phase: deal(self, 0))


@mutant("sampler.rate")
def a_trainer_deals_only_half_of_what_is_sampled(patch: Patch, tap: ReleaseTap) -> None:
    patch.setattr(Trainer, "_deal", lambda self, phase: deal(self, phase)[::2])


@mutant("sampler.entropy")
def coins_of_a_simulation(patch: Patch, tap: ReleaseTap) -> None:
    generator = np.random.default_rng()
    patch.setattr(
        PoissonSampler, "draw", lambda self: np.flatnonzero(generator.random(self._units) < float(self._rate))
    )


@mutant("drawn.rate")
def the_second_phase_sampled_at_the_rate_of_the_first(patch: Patch, tap: ReleaseTap) -> None:
    begin = Trainer.__init__

    def first(self: Trainer, *given: Any, **more: Any) -> None:
        begin(self, *given, **more)
        rates = [one._rate for one in self._samplers if isinstance(one, PoissonSampler)]
        for one in self._samplers if rates else ():
            one._rate = rates[0]  # type: ignore[attr-defined]

    patch.setattr(Trainer, "__init__", first)
