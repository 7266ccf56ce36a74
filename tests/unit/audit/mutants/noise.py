"""Faults of the noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from appliance.train.noise import DiscreteGaussian
from appliance.train.optimizer import ExactDPOptimizer, Noise
from appliance.train.tap import ReleaseTap
from tests.unit.audit.mutants.registry import Patch, mutant

Vector = NDArray[Any]

draw, add_noise, scale_grad = DiscreteGaussian.draw, ExactDPOptimizer.add_noise, ExactDPOptimizer.scale_grad


def noise(patch: Patch, change: Callable[[Vector], Vector]) -> None:
    """Passes every noise vector through `change`."""
    patch.setattr(DiscreteGaussian, "draw", lambda self, count: change(draw(self, count)).astype(np.int64))


def source(change: Callable[[Any, int], Vector], optimizer: ExactDPOptimizer) -> Any:
    """A noise source in place of the optimiser's: `change` gets the optimiser's and how many values are due."""
    kept = optimizer._noise
    return type("Source", (Noise,), {"draw": lambda _, count: change(kept, count).astype(np.int64)})()


def deviation(tap: ReleaseTap) -> float:
    return tap.noise_std / tap.grid


# --- how much -------------------------------------------------------------------------------------------------------


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
    noise(patch, lambda n: np.where((np.arange(len(n)) < start) | (np.arange(len(n)) >= stop), n, 0))


@mutant("noise.tensors")
def the_smallest_tensor_with_less_noise(patch: Patch, tap: ReleaseTap) -> None:
    _, start, stop = min(tap.tensors, key=lambda t: t[2] - t[1])
    noise(patch, lambda n: n * np.where((np.arange(len(n)) >= start) & (np.arange(len(n)) < stop), 0.8, 1.0))


@mutant("noise.blocks")
def every_sixty_fourth_value_with_half_the_noise(patch: Patch, tap: ReleaseTap) -> None:
    noise(patch, lambda n: np.where(np.arange(len(n)) % 64 == 9, n // 2, n))


@mutant("noise.coordinates")
def one_coordinate_without_noise(patch: Patch, tap: ReleaseTap) -> None:
    noise(patch, lambda n: np.where(np.arange(len(n)) == 777, 0, n))


@mutant("noise.applied")
def no_noise_on_the_empty_batch(patch: Patch, tap: ReleaseTap) -> None:
    def quiet(self: ExactDPOptimizer) -> None:
        kept = self._noise
        if not bool(self._summed.any()):  # type: ignore[union-attr]
            self._noise = type("Zeros", (), {"draw": lambda _, count: np.zeros(count, dtype=np.int64)})()
        add_noise(self)
        self._noise = kept

    patch.setattr(ExactDPOptimizer, "add_noise", quiet)


@mutant("noise.tensors")
def less_noise_where_there_are_records(patch: Patch, tap: ReleaseTap) -> None:
    busy = [False]

    def noting(self: ExactDPOptimizer) -> None:
        busy[0] = bool(self._summed.any())  # type: ignore[union-attr]
        add_noise(self)

    patch.setattr(ExactDPOptimizer, "add_noise", noting)
    noise(patch, lambda n: n * (0.9 if busy[0] else 1.0))


@mutant("noise.applied")
def noise_that_is_drawn_and_scaled_down(patch: Patch, tap: ReleaseTap) -> None:
    def less(self: ExactDPOptimizer) -> None:
        kept = self._noise
        self._noise = source(lambda noise, count: noise.draw(count) * 0.9, self)
        add_noise(self)
        self._noise = kept

    patch.setattr(ExactDPOptimizer, "add_noise", less)


@mutant("noise.applied")
def two_vectors_are_drawn_and_their_mean_is_added(patch: Patch, tap: ReleaseTap) -> None:
    def mean(self: ExactDPOptimizer) -> None:
        kept = self._noise
        self._noise = source(lambda noise, count: (noise.draw(count) + noise.draw(count)) // 2, self)
        add_noise(self)
        self._noise = kept

    patch.setattr(ExactDPOptimizer, "add_noise", mean)


@mutant("noise.applied")
def a_step_without_records_is_skipped(patch: Patch, tap: ReleaseTap) -> None:
    def forgetting(self: ExactDPOptimizer) -> None:
        empty = not bool(self._summed.any())  # type: ignore[union-attr]
        add_noise(self)
        if empty:
            self._noised = torch.zeros(tap.parameters)

    patch.setattr(ExactDPOptimizer, "add_noise", forgetting)


@mutant("noise.applied")
def divided_by_the_batch_size_twice(patch: Patch, tap: ReleaseTap) -> None:
    patch.setattr(ExactDPOptimizer, "scale_grad", lambda self: (scale_grad(self), scale_grad(self)))


# --- which law ------------------------------------------------------------------------------------------------------


@mutant("noise.shape")
def uniform_noise_of_the_same_deviation(patch: Patch, tap: ReleaseTap) -> None:
    width = 3**0.5 * deviation(tap)
    noise(patch, lambda n: np.random.default_rng().uniform(-width, width, len(n)))


@mutant("noise.shape")
def laplace_noise_of_the_same_deviation(patch: Patch, tap: ReleaseTap) -> None:
    noise(patch, lambda n: np.random.default_rng().laplace(0, deviation(tap) / 2**0.5, len(n)))


@mutant("noise.shape")
def noise_of_one_sign(patch: Patch, tap: ReleaseTap) -> None:
    noise(patch, np.abs)


@mutant("noise.shape")
def noise_of_few_values(patch: Patch, tap: ReleaseTap) -> None:
    step = 0.5 * deviation(tap)
    noise(patch, lambda n: np.round(n / step) * step * 0.9897)  # as much variance as before


@mutant("noise.tails")
def noise_cut_off_at_three_deviations(patch: Patch, tap: ReleaseTap) -> None:
    noise(patch, lambda n: n.clip(-3 * deviation(tap), 3 * deviation(tap)))


@mutant("noise.reach")
def noise_cut_off_at_five_deviations(patch: Patch, tap: ReleaseTap) -> None:
    noise(patch, lambda n: n.clip(-5 * deviation(tap), 5 * deviation(tap)))


@mutant("noise.lattice")
def the_fine_level_is_dropped(patch: Patch, tap: ReleaseTap) -> None:
    def coarse(self: DiscreteGaussian, count: int) -> Vector:
        kept, self._levels = self._levels, self._levels[1:]
        try:
            return draw(self, count)
        finally:
            self._levels = kept

    patch.setattr(DiscreteGaussian, "draw", coarse)


@mutant("noise.lattice")
def noise_that_is_always_even(patch: Patch, tap: ReleaseTap) -> None:
    noise(patch, lambda n: n // 2 * 2)


@mutant("noise.lattice")
def noise_that_is_always_odd(patch: Patch, tap: ReleaseTap) -> None:
    noise(patch, lambda n: n // 2 * 2 + 1)


@mutant("noise.lattice")
def one_tensor_whose_noise_is_a_multiple_of_three(patch: Patch, tap: ReleaseTap) -> None:
    _, start, stop = tap.tensors[2]
    noise(patch, lambda n: np.concatenate([n[:start], n[start:stop] // 3 * 3, n[stop:]]))


@mutant("noise.residues")
def noise_that_is_mostly_even(patch: Patch, tap: ReleaseTap) -> None:
    noise(patch, lambda n: np.where(np.arange(len(n)) % 8, n, n // 2 * 2))


@mutant("noise.residues")
def a_fine_level_of_half_its_width(patch: Patch, tap: ReleaseTap) -> None:
    multiplier = tap.multipliers[-1]

    def narrow(n: Vector) -> Vector:
        coarse = np.rint(n / multiplier).astype(np.int64) * multiplier
        return coarse + (n - coarse) // 2

    noise(patch, narrow)


@mutant("noise.residues")
def noise_from_single_precision(patch: Patch, tap: ReleaseTap) -> None:
    def single(n: Vector) -> Vector:
        values = np.random.default_rng().standard_normal(len(n)).astype(np.float16)
        return np.rint(values.astype(np.float64) * deviation(tap))

    noise(patch, single)
