"""Faults of the loop that tell the world what only a release may: sizes, norms, sums, ends."""

from __future__ import annotations

import logging
from typing import Any

from torch import Tensor

from appliance.train import loop
from appliance.train.engine import Engine
from appliance.train.loop import Trainer
from appliance.train.tap import ReleaseTap
from tests.unit.audit.mutants.clip import accumulate
from tests.unit.audit.mutants.loops import apply_step, deal, release, report, snapshot, write
from tests.unit.audit.mutants.registry import Patch, mutant


@mutant("loop.invariance")
def progress_tells_the_size_of_the_batch(patch: Patch, tap: ReleaseTap) -> None:
    sizes: list[int] = []

    def noted(self: Trainer, phase: int) -> Any:
        sizes.append(len(deal(self, phase)))
        return deal(self, phase)

    def tell(self: Trainer) -> None:
        self._progress({"step": self._step, "batch": sizes[-1]})

    patch.setattr(Trainer, "_deal", noted)
    patch.setattr(Trainer, "_report", tell)


@mutant("loop.invariance")
def the_log_tells_the_size_of_the_batch(patch: Patch, tap: ReleaseTap) -> None:
    def log(self: Engine, units: Any) -> None:
        logging.getLogger("appliance").info("%d units", len(units))
        accumulate(self, units)

    patch.setattr(Engine, "accumulate", log)


@mutant("loop.invariance")
def a_norm_is_printed(patch: Patch, tap: ReleaseTap) -> None:
    def show(self: Engine, units: Any) -> None:
        accumulate(self, units)
        print(float(self.sum.total.norm()))

    patch.setattr(Engine, "accumulate", show)


@mutant("loop.invariance")
def a_snapshot_holds_a_sum(patch: Patch, tap: ReleaseTap) -> None:
    seen: list[float] = [0.0]

    def noted(self: Engine, units: Any) -> None:
        accumulate(self, units)
        seen[0] = float(self.sum.total.abs().sum()) % 997

    encode = loop.encode_state

    def leak(state: Any) -> bytes:
        state.second_moment[-1] = seen[0]
        return encode(state)

    patch.setattr(Engine, "accumulate", noted)
    patch.setattr(loop, "encode_state", leak)


@mutant("loop.invariance")
def a_release_is_stored_with_its_sum(patch: Patch, tap: ReleaseTap) -> None:
    held: list[Tensor] = []

    def keep(self: Trainer, number: int) -> Tensor:
        held.append(self._engine.sum.total.clone())
        return release(self, number)

    def store(self: Trainer, gradient: Tensor, number: int) -> Tensor:
        self._snapshots.save("sum", held[-1].numpy().tobytes())
        return write(self, gradient, number)

    patch.setattr(Trainer, "_release", keep)
    patch.setattr(Trainer, "_write", store)


@mutant("loop.forced")
def a_step_without_records_is_not_applied(patch: Patch, tap: ReleaseTap) -> None:
    empty = [False]

    def noted(self: Engine, units: Any) -> None:
        accumulate(self, units)
        empty[0] = not units

    def skip(self: Trainer, gradient: Tensor, number: int) -> None:
        if empty[0] and self._step:
            self._step += 1
        else:
            apply_step(self, gradient, number)

    patch.setattr(Engine, "accumulate", noted)
    patch.setattr(Trainer, "_apply", skip)


@mutant("loop.invariance")
def a_run_ends_early_where_gradients_are_small(patch: Patch, tap: ReleaseTap) -> None:
    small = [False]

    def noted(self: Engine, units: Any) -> None:
        accumulate(self, units)
        small[0] = float(self.sum.total.abs().max()) < tap.clip_norm / self.sum.grid / 100

    def stop(self: Trainer) -> None:
        report(self)
        if small[0] and self._step > 12:
            self._step = self._plan.steps

    patch.setattr(Engine, "accumulate", noted)
    patch.setattr(Trainer, "_report", stop)


@mutant("loop.invariance")
def a_snapshot_is_skipped_where_the_batch_is_empty(patch: Patch, tap: ReleaseTap) -> None:
    few = [False]

    def noted(self: Engine, units: Any) -> None:
        accumulate(self, units)
        few[0] = len(units) < 2

    patch.setattr(Engine, "accumulate", noted)
    patch.setattr(Trainer, "_snapshot", lambda self: None if few[0] else snapshot(self))
