"""Faults of the loop: what is released how often, and what else follows the data."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from appliance.train.engine import Engine
from appliance.train.engines import Alone
from appliance.train.loop import Trainer
from appliance.train.noise import DiscreteGaussian
from appliance.train.optimizer import ExactDPOptimizer
from appliance.train.tap import ReleaseTap
from tests.unit.audit.mutants.clip import accumulate
from tests.unit.audit.mutants.noise import add_noise, draw
from tests.unit.audit.mutants.registry import Patch, mutant

attempt, release, write, deal, report = (
    Trainer._attempt,
    Trainer._release,
    Trainer._write,
    Trainer._deal,
    Trainer._report,
)
snapshot, apply_step, enter = Trainer._snapshot, Trainer._apply, Trainer._enter
released, apply, scale = ExactDPOptimizer.release, ExactDPOptimizer.apply, ExactDPOptimizer.scale_grad


def training(self: ExactDPOptimizer) -> bool:
    """Whether a loop drives this optimiser: the faults here are faults of the loop alone."""
    return self.step_hook is not None


def unchecked(patch: Patch) -> None:
    """Takes away the loop's own check of its accountant: the self-test has to see the fault without it."""
    patch.setattr(Trainer, "_check_accounted", lambda self, before: None)


# --- noise ----------------------------------------------------------------------------------------------------------


@mutant("loop.noise")
def noise_that_is_begun_once_and_given_away_at_every_step(patch: Patch, tap: ReleaseTap) -> None:
    """The fault of a source that draws ahead, as on a GPU; drawn without being begun its noise is right."""
    kept: dict[int, Any] = {}
    patch.setattr(DiscreteGaussian, "begin", lambda self, count: kept.setdefault(count, draw(self, count)))
    patch.setattr(DiscreteGaussian, "draw", lambda self, count: kept[count] if count in kept else draw(self, count))


@mutant("loop.noise")
def noise_whose_second_half_was_begun_for_the_step_before(patch: Patch, tap: ReleaseTap) -> None:
    kept: dict[int, Any] = {}

    def begin(self: DiscreteGaussian, count: int) -> None:
        fresh = draw(self, count)
        if count in kept:
            fresh[count // 2 :] = kept[count][count // 2 :]
        kept[count] = fresh

    patch.setattr(DiscreteGaussian, "begin", begin)
    patch.setattr(DiscreteGaussian, "draw", lambda self, count: kept[count] if count in kept else draw(self, count))


@mutant("loop.noise")
def noise_of_which_a_hundredth_was_begun_for_the_step_before(patch: Patch, tap: ReleaseTap) -> None:
    kept: dict[int, Any] = {}

    def begin(self: DiscreteGaussian, count: int) -> None:
        fresh = draw(self, count)
        if count in kept:
            fresh[:: max(1, min(100, count // 8))] = kept[count][:: max(1, min(100, count // 8))]
        kept[count] = fresh

    patch.setattr(DiscreteGaussian, "begin", begin)
    patch.setattr(DiscreteGaussian, "draw", lambda self, count: kept[count] if count in kept else draw(self, count))


@mutant("loop.noise")
def noise_that_is_smaller_where_it_is_begun(patch: Patch, tap: ReleaseTap) -> None:
    begun: list[int] = []

    def less(self: DiscreteGaussian, count: int) -> Any:
        return draw(self, count) * 8 // 10 if begun and begun.pop() == count else draw(self, count)

    patch.setattr(DiscreteGaussian, "begin", lambda self, count: begun.append(count))
    patch.setattr(DiscreteGaussian, "draw", less)


@mutant("loop.noise")
def noise_of_two_values_where_it_is_begun(patch: Patch, tap: ReleaseTap) -> None:
    begun: list[int] = []

    def flat(self: DiscreteGaussian, count: int) -> Any:
        drawn = draw(self, count)
        if not (begun and begun.pop() == count):
            return drawn
        return np.where(drawn < 0, -1, 1) * round(tap.noise_std / tap.grid)

    patch.setattr(DiscreteGaussian, "begin", lambda self, count: begun.append(count))
    patch.setattr(DiscreteGaussian, "draw", flat)


# --- releases -------------------------------------------------------------------------------------------------------


@mutant("loop.releases")
def a_sum_without_noise_from_the_second_step_on(patch: Patch, tap: ReleaseTap) -> None:
    steps = [0]

    def bare(self: ExactDPOptimizer) -> None:
        summed = self._summed.clone()  # type: ignore[union-attr]
        add_noise(self)
        steps[0] += training(self)
        if steps[0] > 1:
            self._noised = (summed * self._total.grid).float()

    patch.setattr(ExactDPOptimizer, "add_noise", bare)


@mutant("loop.releases")
def a_sum_without_noise_in_the_second_phase(patch: Patch, tap: ReleaseTap) -> None:
    def bare(self: Trainer, number: int) -> Tensor:
        clean = self._engine.sum.total[: tap.narrowed().parameters] * self._engine.sum.grid
        found = clean.float() if self._phase else None
        noised = release(self, number)
        return noised if found is None else found

    patch.setattr(Trainer, "_release", bare)


@mutant("loop.releases")
def what_is_applied_is_not_what_was_released(patch: Patch, tap: ReleaseTap) -> None:
    last: list[Tensor] = []

    def lagging(self: Trainer, gradient: Tensor, number: int) -> None:
        last.append(gradient)
        apply_step(self, last[-2] if len(last) > 1 else gradient, number)

    patch.setattr(Trainer, "_apply", lagging)


@mutant("loop.counts")
def a_sum_is_released_twice(patch: Patch, tap: ReleaseTap) -> None:
    def twice(self: Trainer, number: int) -> Tensor:
        summed = self._engine.sum.total.clone()
        first = release(self, number)
        self._engine.sum.total.copy_(summed)
        return (first + release(self, number)) / 2

    patch.setattr(Trainer, "_release", twice)
    unchecked(patch)


@mutant("loop.releases")
def a_batch_is_used_twice(patch: Patch, tap: ReleaseTap) -> None:
    patch.setattr(Trainer, "_deal", lambda self, phase: np.repeat(deal(self, phase), 2))


@mutant("loop.ran")
def the_batch_before_is_added(patch: Patch, tap: ReleaseTap) -> None:
    before: list[Any] = []

    def more(self: Engine, units: Any) -> None:
        before.append(units)
        accumulate(self, [*units, *before[-2]] if len(before) > 1 else units)

    patch.setattr(Engine, "accumulate", more)


@mutant("loop.releases")
def a_doubled_reduce(patch: Patch, tap: ReleaseTap) -> None:
    patch.setattr(Alone, "reduce", lambda self, total: total.mul_(2))


@mutant("loop.releases")
def records_that_were_not_sampled(patch: Patch, tap: ReleaseTap) -> None:
    def more(self: Trainer, phase: int) -> Any:
        return np.union1d(deal(self, phase), [0])

    patch.setattr(Trainer, "_deal", more)


@mutant("loop.counts")
def a_step_more_than_the_plan(patch: Patch, tap: ReleaseTap) -> None:
    run = Trainer.run

    def longer(self: Trainer) -> Any:
        self._plan = self._plan.model_copy(update={"steps": self._plan.steps + 1})
        return run(self)

    patch.setattr(Trainer, "run", longer)


@mutant("loop.counts")
def an_attempt_is_journaled_after_its_sample(patch: Patch, tap: ReleaseTap) -> None:
    def late(self: Trainer) -> None:
        kept, missed = self._journal, []
        state = kept.state

        class Late:
            def __getattr__(self, name: str) -> Any:
                return getattr(kept, name)

            def attempt(self, *given: Any) -> int:
                missed.append(given)
                return state.attempts + 1

            def record_release(self, *given: Any) -> None:
                kept.attempt(*missed.pop())
                kept.record_release(*given)

        self._journal = Late()  # type: ignore[assignment]
        try:
            attempt(self)
        finally:
            self._journal = kept

    patch.setattr(Trainer, "_attempt", late)


@mutant("loop.counts")
def a_release_is_applied_before_it_is_journaled(patch: Patch, tap: ReleaseTap) -> None:
    held: list[Any] = []

    def hold(self: Trainer, gradient: Tensor, number: int) -> Tensor:
        held.append((gradient, number))
        return gradient

    def later(self: Trainer, gradient: Tensor, number: int) -> None:
        apply_step(self, gradient, number)
        self._step -= 1
        write(self, *held.pop())
        self._step += 1

    patch.setattr(Trainer, "_write", hold)
    patch.setattr(Trainer, "_apply", later)


@mutant("loop.counts")
def the_accountant_sees_half_of_the_steps(patch: Patch, tap: ReleaseTap) -> None:
    def every_other(self: Trainer, phase: int) -> None:
        enter(self, phase)
        hook, calls = self._optimizer.step_hook, [0]

        def half(optimizer: Any) -> None:
            calls[0] += 1
            if calls[0] % 2:
                hook(optimizer)

        self._optimizer.attach_step_hook(half)

    patch.setattr(Trainer, "_enter", every_other)
    unchecked(patch)


@mutant("loop.counts")
def the_accountant_keeps_the_first_rate(patch: Patch, tap: ReleaseTap) -> None:
    def first(self: Trainer, phase: int) -> None:
        if not phase:
            enter(self, phase)
        self._phase = phase

    patch.setattr(Trainer, "_enter", first)
    unchecked(patch)


@mutant("loop.counts")
def a_phase_begins_a_step_late(patch: Patch, tap: ReleaseTap) -> None:
    from appliance.jobs.plan import PrivacyPlan

    phase_at = PrivacyPlan.phase_at
    patch.setattr(PrivacyPlan, "phase_at", lambda self, number: phase_at(self, number - 1))
    unchecked(patch)


@mutant("loop.counts")
def the_second_phase_never_begins(patch: Patch, tap: ReleaseTap) -> None:
    from appliance.jobs.plan import PrivacyPlan

    patch.setattr(PrivacyPlan, "phase_at", lambda self, number: 0)
    unchecked(patch)


@mutant("loop.releases")
def records_are_used_before_they_are_dealt(patch: Patch, tap: ReleaseTap) -> None:
    ahead: list[Any] = []

    def next_batch(self: Trainer, phase: int) -> Any:
        ahead.append(deal(self, phase))
        return ahead[-2] if len(ahead) > 1 and phase == 0 else ahead[-1]

    patch.setattr(Trainer, "_deal", next_batch)


# --- weights --------------------------------------------------------------------------------------------------------


@mutant("loop.releases")
def a_divisor_that_follows_the_batch(patch: Patch, tap: ReleaseTap) -> None:
    sizes: list[int] = []

    def noted(self: Trainer, phase: int) -> Any:
        batch = deal(self, phase)
        sizes.append(len(batch))
        return batch

    def divided(self: ExactDPOptimizer) -> None:
        if sizes:
            self.expected_batch_size = max(1, sizes[-1])
        scale(self)

    patch.setattr(Trainer, "_deal", noted)
    patch.setattr(ExactDPOptimizer, "scale_grad", divided)


@mutant("loop.releases")
def the_divisor_of_the_first_phase(patch: Patch, tap: ReleaseTap) -> None:
    patch.setattr(Trainer, "_apply", lambda self, gradient, number: apply_step(self, gradient, 1))


def stepped(patch: Patch, before: Any) -> None:
    """Does something before AdamW steps."""

    def through(self: ExactDPOptimizer, gradient: Tensor) -> None:
        before(self)
        apply(self, gradient)

    patch.setattr(ExactDPOptimizer, "apply", through)


@mutant("loop.invariance")
def a_learning_rate_that_follows_norms(patch: Patch, tap: ReleaseTap) -> None:
    from appliance.train import clipping

    norms, seen = clipping.norms, [1.0]

    def noted(rows: Tensor) -> Tensor:
        found = norms(rows)
        seen[0] = float(found[torch.isfinite(found)].mean()) if len(found) else 1.0
        return found

    def follow(self: ExactDPOptimizer) -> None:
        for group in self.param_groups:
            group["lr"] = 1e-2 * min(1.0, 1 / seen[0])

    patch.setattr(clipping, "norms", noted)
    stepped(patch, follow)


@mutant("loop.weights")
def a_weight_decay(patch: Patch, tap: ReleaseTap) -> None:
    def decay(self: ExactDPOptimizer) -> None:
        for parameter in self.params:
            parameter.data.mul_(0.99)

    stepped(patch, decay)


@mutant("loop.weights")
def every_release_is_applied_twice(patch: Patch, tap: ReleaseTap) -> None:
    def twice(self: ExactDPOptimizer, gradient: Tensor) -> None:
        apply(self, gradient)
        for parameter, view in self._adapter.views(gradient):
            parameter.data -= 1e-2 * view.sign().to(parameter)

    patch.setattr(ExactDPOptimizer, "apply", twice)


@mutant("loop.weights")
def weights_that_take_a_gradient_without_noise(patch: Patch, tap: ReleaseTap) -> None:
    def leak(self: Engine, units: Any) -> None:
        accumulate(self, units)
        for parameter, view in self.adapter.views(self.sum.total[: self.adapter.parameters]):
            parameter.data -= 1e-3 * view.sign().to(parameter)

    patch.setattr(Engine, "accumulate", leak)
