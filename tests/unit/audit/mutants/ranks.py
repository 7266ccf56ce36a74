"""Faults of several processes that train together."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from appliance.train.engines import Several
from appliance.train.following import FollowedJournal, NotHere
from appliance.train.noise import DiscreteGaussian
from appliance.train.optimizer import ExactDPOptimizer
from appliance.train.tap import ReleaseTap
from tests.unit.audit.mutants.loops import unchecked
from tests.unit.audit.mutants.registry import Patch, mutant

deal, reduce, share, follow, agree = (
    Several.deal,
    Several.reduce,
    Several.share,
    ExactDPOptimizer.follow,
    Several.agree,
)


def dealt(patch: Patch, change: Any) -> None:
    """Passes what each rank is dealt through `change`."""
    patch.setattr(Several, "deal", lambda self, draw, units: change(self, deal(self, draw, units), units))


@mutant("ranks.releases")
def every_rank_takes_the_whole_batch(patch: Patch, tap: ReleaseTap) -> None:
    def whole(self: Several, draw: Any, units: int) -> Any:
        kept, self.size = self.size, 1
        rank = self.rank
        try:
            chosen = np.zeros(units, dtype=np.bool_)
            if rank == 0:
                chosen[draw()] = True
            return np.flatnonzero(self.share(torch.from_numpy(chosen)).numpy())
        finally:
            self.size = kept

    patch.setattr(Several, "deal", whole)


@mutant("ranks.releases")
def a_unit_goes_to_two_ranks(patch: Patch, tap: ReleaseTap) -> None:
    def both(self: Several, part: Any, units: int) -> Any:
        told = np.zeros(units, dtype=np.bool_)
        told[part[:1]] = self.main
        return np.union1d(part, np.flatnonzero(self.share(torch.from_numpy(told)).numpy()))

    dealt(patch, both)


@mutant("ranks.releases")
def the_last_rank_loses_its_part(patch: Patch, tap: ReleaseTap) -> None:
    dealt(patch, lambda self, part, units: part[: 0 if self.rank == self.size - 1 else len(part)])


@mutant("ranks.releases")
def sums_are_reduced_twice(patch: Patch, tap: ReleaseTap) -> None:
    patch.setattr(Several, "reduce", lambda self, total: (reduce(self, total), reduce(self, total)))


@mutant("ranks.releases")
def sums_are_not_reduced(patch: Patch, tap: ReleaseTap) -> None:
    patch.setattr(Several, "reduce", lambda self, total: None)


@mutant("ranks.releases")
def sums_travel_in_single_precision(patch: Patch, tap: ReleaseTap) -> None:
    def single(self: Several, total: Tensor) -> None:
        total.copy_(total.half() if self.rank else total)
        reduce(self, total)

    patch.setattr(Several, "reduce", single)


@mutant("ranks.releases")
def the_sum_of_a_follower_stays(patch: Patch, tap: ReleaseTap) -> None:
    def stay(self: ExactDPOptimizer) -> Tensor:
        kept = self._total._sum.clone()
        found = follow(self)
        self._total._sum.copy_(kept)
        return found

    patch.setattr(ExactDPOptimizer, "follow", stay)


@mutant("ranks.weights")
def a_follower_applies_nothing(patch: Patch, tap: ReleaseTap) -> None:
    def own(self: Several, tensor: Tensor) -> Tensor:
        found = share(self, tensor)
        floating = tensor.dtype == torch.float32 and not self.main
        return torch.zeros_like(found) if floating else found

    patch.setattr(Several, "share", own)
    patch.setattr(Several, "agree", lambda self, *_: None)


@mutant("ranks.agree")
def ranks_never_disagree(patch: Patch, tap: ReleaseTap) -> None:
    patch.setattr(Several, "agree", lambda self, *_: None)


@mutant("ranks.agree")
def ranks_compare_half_of_their_weights(patch: Patch, tap: ReleaseTap) -> None:
    patch.setattr(Several, "agree", lambda self, tensor, *what: agree(self, tensor[: len(tensor) // 2], *what))


@mutant("ranks.agree")
def ranks_compare_weights_in_bfloat16(patch: Patch, tap: ReleaseTap) -> None:
    patch.setattr(Several, "agree", lambda self, tensor, *what: agree(self, tensor.bfloat16().float(), *what))


@mutant("ranks.counts")
def a_follower_does_not_account(patch: Patch, tap: ReleaseTap) -> None:
    from appliance.train.loop import Trainer

    def quiet(self: ExactDPOptimizer) -> Tensor:
        kept, self.step_hook = self.step_hook, None
        found = follow(self)
        self.step_hook = kept
        return found

    check = Trainer._check_accounted
    patch.setattr(ExactDPOptimizer, "follow", quiet)
    patch.setattr(Trainer, "_check_accounted", lambda self, before: check(self, before) if self._ranks.main else None)


@mutant("ranks.releases")
def followers_draw_noise_of_their_own(patch: Patch, tap: ReleaseTap) -> None:
    source = tap._assembled.optimizer._noise

    def noisy(self: ExactDPOptimizer) -> Tensor:
        return follow(self)

    def reduced(self: Several, total: Tensor) -> None:
        if not self.main:
            total += torch.from_numpy(DiscreteGaussian.draw(source, len(total))).double()  # type: ignore[arg-type]
        reduce(self, total)

    patch.setattr(ExactDPOptimizer, "follow", noisy)
    patch.setattr(Several, "reduce", reduced)


@mutant("ranks.counts")
def every_rank_journals_an_attempt(patch: Patch, tap: ReleaseTap) -> None:
    attempt = FollowedJournal.attempt

    def twice(self: FollowedJournal, *given: Any) -> int:
        attempt(self, *given)
        return attempt(self, *given)

    patch.setattr(FollowedJournal, "attempt", twice)
    unchecked(patch)


@mutant("ranks.releases")
def every_rank_samples(patch: Patch, tap: ReleaseTap) -> None:
    def own(self: Several, draw: Any, units: int) -> Any:
        chosen = np.flatnonzero(np.random.default_rng().random(units) < 0.1) if not self.main else draw()
        return chosen[self.rank :: self.size].astype(np.int64)

    patch.setattr(Several, "deal", own)
    patch.setattr(NotHere, "draw", lambda self, *_: np.empty(0, dtype=np.int64))
