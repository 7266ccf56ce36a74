"""Faults of a run that goes on after it was killed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from appliance.privacy.journal import Journal
from appliance.train import loop
from appliance.train.loop import Trainer
from appliance.train.snapshot import decode_release
from appliance.train.tap import ReleaseTap
from tests.unit.audit.mutants.loops import apply_step, attempt, unchecked
from tests.unit.audit.mutants.registry import Patch, mutant

resume, restore, forget, journal_attempt = Trainer._resume, Trainer._restore, Trainer._forget_releases, Journal.attempt


@mutant("resume.charged")
def a_resumed_attempt_is_not_charged(patch: Patch, tap: ReleaseTap) -> None:
    fresh: set[int] = set()

    def free(self: Journal, *given: Any) -> int:
        first = id(self) not in fresh and self.state.attempts > 0
        fresh.add(id(self))
        return self.state.attempts if first else journal_attempt(self, *given)

    patch.setattr(Journal, "attempt", free)
    unchecked(patch)


@mutant("resume.charged")
def attempts_that_died_are_forgotten(patch: Patch, tap: ReleaseTap) -> None:
    opened = Journal.open.__func__  # type: ignore[attr-defined]

    def forgetting(cls: Any, path: Any, *given: Any) -> Journal:
        if path.exists():
            lines = path.read_bytes().splitlines(keepends=True)
            while len(lines) > 1 and b'"attempt"' in lines[-1]:
                lines.pop()
            path.write_bytes(b"".join(lines))
        made: Journal = opened(cls, path, *given)
        return made

    patch.setattr(Journal, "open", classmethod(forgetting))


@mutant("resume.steps")
def a_journaled_release_is_drawn_again(patch: Patch, tap: ReleaseTap) -> None:
    def again(self: Trainer) -> None:
        stored = self._snapshots.load(loop.SNAPSHOT)
        if stored is not None:
            self._restore(loop.decode_state(stored, self._adapter.parameters))
        while self._step < self._journal.state.steps:
            self._attempt()

    patch.setattr(Trainer, "_resume", again)
    unchecked(patch)


@mutant("resume.weights")
def a_journaled_release_is_skipped(patch: Patch, tap: ReleaseTap) -> None:
    def nothing(self: Trainer) -> None:
        stored = self._snapshots.load(loop.SNAPSHOT)
        if stored is not None:
            self._restore(loop.decode_state(stored, self._adapter.parameters))
        self._step = max(self._step, self._journal.state.steps)

    patch.setattr(Trainer, "_resume", nothing)


@mutant("resume.steps")
def a_journaled_release_is_applied_twice(patch: Patch, tap: ReleaseTap) -> None:
    def twice(self: Trainer) -> None:
        before = self._step
        resume(self)
        if self._step > before:
            data = self._snapshots.load(loop.release_name(self._step))
            if data is not None:
                found = decode_release(data, self._adapter.parameters)
                self._step -= 1
                apply_step(self, found.gradient, found.attempt)

    patch.setattr(Trainer, "_resume", twice)


@mutant("resume.steps")
def a_release_that_was_not_journaled_is_applied(patch: Patch, tap: ReleaseTap) -> None:
    def more(self: Trainer) -> None:
        resume(self)
        data = self._snapshots.load(loop.release_name(self._step + 1))
        if data is not None:
            found = decode_release(data, self._adapter.parameters)
            self._apply(found.gradient, found.attempt)

    patch.setattr(Trainer, "_resume", more)


@mutant("resume.weights")
def moments_are_not_restored(patch: Patch, tap: ReleaseTap) -> None:
    def fresh(self: Trainer, state: Any) -> None:
        zeros = torch.zeros_like(state.first_moment)
        restore(self, replace(state, first_moment=zeros, second_moment=zeros))

    patch.setattr(Trainer, "_restore", fresh)


@mutant("resume.weights")
def weights_are_not_restored(patch: Patch, tap: ReleaseTap) -> None:
    def start(self: Trainer, state: Any) -> None:
        restore(self, replace(state, weights=self._weights()))

    patch.setattr(Trainer, "_restore", start)


@mutant("resume.weights")
def a_replayed_release_is_divided_by_the_last_phase(patch: Patch, tap: ReleaseTap) -> None:
    def last(self: Trainer) -> None:
        self._apply = lambda gradient, number: apply_step(self, gradient, self._plan.attempts)  # type: ignore[method-assign]
        resume(self)
        del self._apply

    patch.setattr(Trainer, "_resume", last)


@mutant("resume.charged")
def a_resumed_run_begins_with_the_first_phase(patch: Patch, tap: ReleaseTap) -> None:
    def first(self: Trainer) -> None:
        if self._journal.state.attempts >= self._plan.schedule[0].steps and self._phase == 0:
            self._phase = len(self._plan.schedule) - 1  # so that the accountant keeps the first rate
        attempt(self)

    patch.setattr(Trainer, "_attempt", first)
    unchecked(patch)
