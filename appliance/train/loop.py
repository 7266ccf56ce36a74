"""The order of a DP-SGD step, once: attempt, sample, gradients, clip, sum, noise, release, apply, snapshot.

Where gradients are computed by another device, the noise is drawn by this processor meanwhile; it is added in its turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.accountants import PRVAccountant
from torch import Tensor

from appliance.errors import GateFailed, IntegrityError
from appliance.jobs.plan import PrivacyPlan
from appliance.jobs.rundir import SNAPSHOT, SNAPSHOT_EVERY, release_name
from appliance.train.engines import Alone, Ranks, Several
from appliance.train.following import FollowedJournal, FollowedSnapshots, NotHere
from appliance.train.journaling import Journal
from appliance.train.mechanism import Assembled
from appliance.train.members import Records, members
from appliance.train.proofs import prove_alike, prove_moved
from appliance.train.sampler import PoissonSampler
from appliance.train.snapshot import (
    Release,
    Snapshots,
    State,
    decode_release,
    decode_state,
    digest,
    encode_release,
    encode_state,
)
from appliance.train.trained import Trained, collect

Progress = Callable[[dict[str, int]], None]


class Sampler(Protocol):
    """Where logical batches come from."""

    def draw(self) -> NDArray[np.int64]:
        """Draw the positions of the sampled units."""
        ...


class Trainer:
    """One training run on one mechanism: what `train` runs, and what the self-test drives with records of its own.

    Tests alone pass `sampler`, or a mechanism with a noise source of theirs. Neither has a counterpart in `TrainJob`,
    which forbids unknown keys, and `train` takes neither, so no job can reach them; whoever passes one gets an adapter
    that `save_adapter` refuses.

    Args:
      mechanism: adapter, encoder, engine, noise and optimiser, as `assemble` put them together.
      plan: what the mechanism was assembled for.
      settings: digest of what a stored state must have been trained with to be continued.
      records: as of `train`, like all that follow.
      sampler: in place of Poisson sampling.
    """

    def __init__(
        self,
        mechanism: Assembled,
        plan: PrivacyPlan,
        settings: str,
        records: Records,
        journal: Journal | None,
        snapshots: Snapshots | None,
        progress: Progress,
        unit_of: Sequence[str] | None = None,
        *,
        ranks: Ranks | None = None,
        sampler: Sampler | None = None,
    ) -> None:
        self._plan, self._settings = plan, settings
        self._records, self._progress = records, progress
        self._ranks = ranks = ranks or Alone()
        self._adapter, self._encoder = mechanism.adapter, mechanism.encoder
        self._engine, self._optimizer = mechanism.engine, mechanism.optimizer
        self._private = sampler is None and mechanism.private
        if not ranks.main:
            sampler = NotHere()
        self._units = [members(plan.unit, records, unit_of, phase.where) for phase in plan.schedule]
        rates = zip(self._units, plan.schedule, strict=True)
        self._samplers = [sampler or PoissonSampler(len(units), phase.sample_rate) for units, phase in rates]
        self._accountant = PRVAccountant()
        self._enter(0)
        self._journal, self._snapshots = _keep(ranks, journal, snapshots)
        self._step = 0

    def run(self) -> Trained:
        """Prove the engine unless it is proved, resume, and step until the plan's steps or attempts are used up."""
        if self._engine.counts is None:
            prove_alike(self._engine, self._encoder.buckets, self._ranks)
        self._resume()
        self._ranks.agree(self._weights(), "the same weights")
        before = self._journal.state.attempts
        while self._step < self._plan.steps and self._journal.state.attempts < self._plan.attempts:
            self._attempt()
            self._check_accounted(before)
        return collect(self._adapter, self._step, self._journal.state.attempts, private=self._private)

    def _attempt(self) -> None:
        attempt = self._journal.state.attempts + 1
        phase = self._plan.phase_at(attempt)
        if phase != self._phase:
            self._enter(phase)
        self._journal.attempt(self._plan.schedule[phase].sample_rate, self._plan.noise_multiplier)
        self._optimizer.begin_noise()
        members = self._units[phase]
        dealt = self._deal(phase)
        self._engine.accumulate([[self._encoder.encode(self._records[i]) for i in members[u]] for u in dealt])
        self._ranks.reduce(self._engine.sum.total)
        self._apply(self._release(attempt), attempt)
        if self._step % SNAPSHOT_EVERY == 0 or self._step == self._plan.steps:
            self._snapshot()
        self._report()

    def _deal(self, phase: int) -> NDArray[np.int64]:
        """Deal this rank its part of a fresh logical batch, as positions in the units of the phase."""
        return self._ranks.deal(self._samplers[phase].draw, len(self._units[phase]))

    def _enter(self, phase: int) -> None:
        # Opacus' hook carries one rate; from here on it accounts at that of this phase.
        rate = float(self._plan.schedule[phase].sample_rate)
        self._optimizer.attach_step_hook(self._accountant.get_optimizer_hook_fn(sample_rate=rate))
        self._phase = phase

    def _check_accounted(self, before: int) -> None:
        # Opacus' hook runs inside the step: it must have seen every step once, with the plan's mechanism.
        rates = self._plan.rates(self._journal.state.attempts, after=before)
        expected = [(self._plan.noise_multiplier, float(rate), count) for rate, count in rates]
        if self._accountant.history != expected:
            raise GateFailed("the accountant did not see exactly the steps that were made")

    def _release(self, attempt: int) -> Tensor:
        if not self._ranks.main:
            return self._ranks.share(self._optimizer.follow())
        return self._ranks.share(self._write(self._optimizer.release(), attempt))

    def _write(self, gradient: Tensor, attempt: int) -> Tensor:
        step = self._step + 1
        data = encode_release(Release(step, self._settings, gradient, attempt))
        self._snapshots.save(release_name(step), data)
        self._journal.record_release(step, digest(data))
        return gradient

    def _apply(self, gradient: Tensor, attempt: int) -> None:
        # Without noise a step need not move anything: A's gradient is zero while B is.
        before = self._weights() if self._step == 0 and self._private else None
        # The divisor is the public batch size of the phase in which the release was sampled.
        self._optimizer.expected_batch_size = self._plan.schedule[self._plan.phase_at(attempt)].expected_batch_size
        self._optimizer.apply(gradient)
        self._step += 1
        if before is not None:
            prove_moved(self._adapter, self._optimizer, before)

    def _snapshot(self) -> None:
        moments = [self._optimizer.state[p] for p in self._adapter.trainable]
        state = State(
            step=self._step,
            attempts=self._journal.state.attempts,
            plan=self._settings,
            weights=self._weights(),
            first_moment=self._adapter.flatten([m["exp_avg"] for m in moments]),
            second_moment=self._adapter.flatten([m["exp_avg_sq"] for m in moments]),
        )
        data = encode_state(state)
        self._snapshots.save(SNAPSHOT, data)
        self._journal.record_checkpoint(self._step, digest(data))
        self._ranks.agree(state.weights, "the same weights")
        self._forget_releases()

    def _forget_releases(self) -> None:
        for step in range(max(1, self._step - SNAPSHOT_EVERY + 1), self._step + 1):
            self._snapshots.delete(release_name(step))

    def _resume(self) -> None:
        stored = self._snapshots.load(SNAPSHOT)
        if stored is not None:
            self._restore(decode_state(stored, self._adapter.parameters))
            self._forget_releases()
        # A release that was saved but not journaled is not replayed: its attempt is charged and it was never applied.
        while self._step < self._journal.state.steps:
            data = self._snapshots.load(release_name(self._step + 1))
            if data is None:
                raise IntegrityError("a journaled release is missing", where=release_name(self._step + 1))
            release = decode_release(data, self._adapter.parameters)
            self._check_belongs(release.plan, release.step == self._step + 1)
            self._apply(release.gradient, release.attempt)

    def _restore(self, state: State) -> None:
        self._check_belongs(state.plan, state.step <= self._journal.state.steps)
        self._step = state.step
        moments = zip(
            self._adapter.views(state.weights),
            self._adapter.views(state.first_moment),
            self._adapter.views(state.second_moment),
            strict=True,
        )
        for (parameter, weight), (_, first), (_, second) in moments:
            parameter.data.copy_(weight)
            self._optimizer.state[parameter] = {
                "step": torch.tensor(float(state.step)),
                "exp_avg": first.clone(memory_format=torch.contiguous_format).to(parameter.device),
                "exp_avg_sq": second.clone(memory_format=torch.contiguous_format).to(parameter.device),
            }

    def _check_belongs(self, plan: str, in_order: bool) -> None:
        if plan != self._settings or not in_order:
            raise IntegrityError("the stored training state is not of this run, or is ahead of its journal")

    def _weights(self) -> Tensor:
        return self._adapter.flatten([p.detach() for p in self._adapter.trainable])

    def _report(self) -> None:
        attempts, plan = self._journal.state.attempts, self._plan
        self._progress({"step": self._step, "steps": plan.steps, "attempts": attempts, "reserved": plan.attempts})


def _keep(ranks: Ranks, journal: Journal | None, snapshots: Snapshots | None) -> tuple[Journal, Snapshots]:
    if isinstance(ranks, Several):
        return FollowedJournal(ranks, journal), FollowedSnapshots(ranks, snapshots)
    if journal is None or snapshots is None:
        raise GateFailed("a run needs a journal and a place for its snapshots")
    return journal, snapshots
