"""Faults that no output of a test can show, each with the reason: what the self-test does not promise."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from appliance.train.optimizer import ExactDPOptimizer
from appliance.train.tap import ReleaseTap
from tests.unit.audit.mutants.loops import training
from tests.unit.audit.mutants.noise import add_noise, noise
from tests.unit.audit.mutants.registry import Patch, unseen
from tests.unit.audit.mutants.sampling import rated, sampled


@unseen("loop", "the loop is driven for some steps of each phase, and this one comes later")
def noise_ends_after_a_hundred_steps(patch: Patch, tap: ReleaseTap) -> None:
    steps = [0]

    def bare(self: ExactDPOptimizer) -> None:
        summed = self._summed.clone()  # type: ignore[union-attr]
        add_noise(self)
        steps[0] += training(self)
        if steps[0] > 100:
            self._noised = (summed * self._total.grid).float()

    patch.setattr(ExactDPOptimizer, "add_noise", bare)


@unseen("noise", "so little is within the chance of the values that are looked at; the component figure allows for it")
def noise_that_is_a_thousandth_low(patch: Patch, tap: ReleaseTap) -> None:
    noise(patch, lambda n: n * 0.999)


@unseen("sampler", "so little is within the chance of the coins that are looked at; the component figure allows for it")
def a_rate_that_is_a_thousandth_high(patch: Patch, tap: ReleaseTap) -> None:
    rated(patch, lambda rate: rate * Fraction(1001, 1000))


@unseen("integers", "it happens less than once in all draws of a test")
def one_draw_of_a_thousand_million_is_zero(patch: Patch, tap: ReleaseTap) -> None:
    generator = np.random.default_rng()
    noise(patch, lambda n: n * (generator.random() > 1e-9))


@unseen("sampler", "a unit has a position and no name here, and which one it is follows from nothing that is tested")
def one_unit_of_a_real_dataset_is_always_in(patch: Patch, tap: ReleaseTap) -> None:
    sampled(patch, lambda self, batch: np.union1d(batch, [1234]) if self._units == 1_000_003 else batch)


@unseen("loop", "an engine that knows that it is tested can do what it likes elsewhere")
def an_engine_that_knows_that_it_is_tested(patch: Patch, tap: ReleaseTap) -> None:
    def bare(self: ExactDPOptimizer) -> None:
        summed = self._summed.clone()  # type: ignore[union-attr]
        add_noise(self)
        if type(self._noise).__module__ == "appliance.train.noise" and training(self):
            self._noised = (summed * self._total.grid).float()

    patch.setattr(ExactDPOptimizer, "add_noise", bare)
