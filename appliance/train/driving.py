"""The loop tap: drives `train.loop.Trainer` with records that are nobody's, and sees what a run would leave.

The trainer is the production one, with its samplers, its encoder, its engine, its noise, its optimiser, its journal and
its way to go on; only gradients are given, and snapshots stay in memory. What reaches the inner optimiser is looked at
and goes on to it, so weights move as in a run. A drive may be killed at given moments; what follows is another life of
the run, with the journal and the snapshots of the one before and with nothing else of it.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from appliance.errors import GateFailed, Interrupted
from appliance.jobs.plan import PrivacyPlan
from appliance.privacy.journal import Journal
from appliance.train import standins
from appliance.train.engines import Alone, Ranks, Several
from appliance.train.exchange import Exchange
from appliance.train.following import NotHere
from appliance.train.loop import Trainer
from appliance.train.mechanism import Assembled
from appliance.train.narrow import narrowed
from appliance.train.snapshot import digest
from appliance.train.watching import (
    Life,
    Material,
    Seen,
    Watch,
    WatchedEncoder,
    WatchedJournal,
    WatchedSnapshots,
    overheard,
    weights,
)

Integers = NDArray[np.int64]
Moment = tuple[str, int]
"""What is about to happen, and the how manieth time."""

_RUN, _DIGEST = "selftest", "0" * 64


class LoopTap:
    """What an audit may do with the loop that trains with a mechanism.

    Args:
      whole: the mechanism; it is driven with a narrow adapter, and its own weights stay as they are.
    """

    def __init__(self, whole: Assembled) -> None:
        self._whole = whole

    def dealer(self, plan: PrivacyPlan, material: Material) -> Dealer:
        """Make a trainer, and give its way to deal logical batches."""
        return Dealer(_trainer(narrowed(self._whole, plan), plan, material, _Nothing(), _Nothing(), Alone()))

    def drive(
        self,
        plan: PrivacyPlan,
        material: Material,
        *,
        forced: Sequence[Integers] | None = None,
        kills: Collection[Moment] = (),
        ranks: int = 1,
    ) -> list[Seen]:
        """Run the loop to the end of the plan.

        Args:
          plan: as long as the drive is to be.
          material: what is trained on.
          forced: what the steps release in place of what they would, in grid units, [P] each.
          kills: where a life ends; not of several ranks.
          ranks: how many take the steps together.

        Returns:
          What each rank saw.
        """
        with TemporaryDirectory() as place, standins.unsynced():
            drive = _Drive(self._whole, plan, material, Path(place) / "journal", forced, kills)
            return [drive.alone()] if ranks == 1 else drive.together(ranks)

    def disagree(self, ranks: int = 2) -> bool:
        """Let ranks compare weights of which one rank's differ in their last bit; whether all of them refuse."""
        refused: list[int] = []

        def compare(several: Several) -> None:
            mine = torch.ones(64)
            mine[-1] += several.rank * 2.0**-23
            try:
                several.agree(mine, "the same weights")
            except GateFailed:
                refused.append(several.rank)

        _in_threads(ranks, compare)
        return len(refused) == ranks


class Dealer:
    """Deals logical batches as a trainer does in its steps."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def __call__(self, phase: int, entropy: Callable[[int], bytes] | None = None) -> tuple[int, Integers]:
        """Deal a batch of a phase: how many units there are, and the positions that were dealt.

        `entropy` stands for the operating system's generator, if given.
        """
        with standins.entropy(entropy) if entropy else nullcontext():
            return len(self._trainer._units[phase]), self._trainer._deal(phase)


class _Killed(Exception):
    """The end of a life."""


class _Drive:
    """One run, over all its lives."""

    def __init__(
        self,
        whole: Assembled,
        plan: PrivacyPlan,
        material: Material,
        path: Path,
        forced: Sequence[Integers] | None,
        kills: Collection[Moment],
    ) -> None:
        self._whole, self._plan, self._material, self._path = whole, plan, material, path
        self._forced, self._kills = forced, frozenset(kills)
        self._counted: Counter[str] = Counter()
        self._stored: dict[str, bytes] = {}

    def alone(self) -> Seen:
        """Run one rank through all its lives."""
        seen = Seen()
        with overheard(seen.told):
            while not self._live(seen, Alone()):
                pass
        seen.told.append(digest(self._path.read_bytes()))
        return seen

    def together(self, size: int) -> list[Seen]:
        """Run several ranks, each in a thread."""
        seen = [Seen() for _ in range(size)]
        with overheard(seen[0].told):
            _in_threads(size, lambda ranks: self._live(seen[ranks.rank], ranks))
        return seen

    def _live(self, seen: Seen, ranks: Ranks) -> bool:
        """Live one life; whether it came to the end of the run."""
        mechanism = narrowed(self._whole, self._plan)
        life = Life(weights(mechanism))
        seen.lives.append(life)
        watch = Watch(life, seen.told, self._happen)
        with self._journal(watch) if ranks.main else nullcontext() as journal:
            life.before = journal.state.attempts if journal else 0
            trainer = self._prepare(mechanism, watch, journal, ranks)
            try:
                with standins.given(mechanism.engine, self._row(mechanism, watch)):
                    trained = trainer.run()
            except _Killed:
                return False
            finally:
                life.history = list(trainer._accountant.history)
        seen.weights, seen.steps, seen.attempts = weights(mechanism), trained.steps, trained.attempts
        return True

    def _prepare(self, mechanism: Assembled, watch: Watch, journal: WatchedJournal | None, ranks: Ranks) -> Trainer:
        """Make the trainer of a life, and put the listeners in."""
        made: list[Trainer] = []
        source: Any = mechanism.optimizer._noise if ranks.main else NotHere()
        if self._forced is not None:
            forced = self._forced
            source = standins.Forced(mechanism.optimizer, lambda: forced[made[0]._step])
        watch.listen(mechanism, ranks, source, lambda: journal.state.attempts if journal else 0)
        watched: Any = WatchedEncoder(mechanism.encoder, self._material, watch)
        snapshots = WatchedSnapshots(self._stored, watch) if ranks.main else None
        mechanism = replace(mechanism, encoder=watched)
        made.append(_trainer(mechanism, self._plan, self._material, journal, snapshots, ranks, watch))
        return made[0]

    def _row(self, mechanism: Assembled, watch: Watch) -> Callable[[Any], standins.Row]:
        parameters = mechanism.adapter.parameters
        return lambda encoded: self._material.row(watch.number_of(encoded), parameters)

    def _happen(self, moment: str) -> None:
        """Count a moment, and end the life in it if that is due."""
        self._counted[moment] += 1
        if (moment, self._counted[moment]) in self._kills:
            raise _Killed

    @contextmanager
    def _journal(self, watch: Watch) -> Iterator[WatchedJournal]:
        """Open the production journal."""
        with Journal.open(self._path, _RUN, _DIGEST) as journal:
            yield WatchedJournal(journal, watch)


def _trainer(
    mechanism: Assembled,
    plan: PrivacyPlan,
    material: Material,
    journal: Any,
    snapshots: Any,
    ranks: Ranks,
    watch: Watch | None = None,
) -> Trainer:
    def progress(public: dict[str, int]) -> None:
        if watch:
            watch.tell("progress", public)

    return Trainer(mechanism, plan, _DIGEST, material, journal, snapshots, progress, ranks=ranks)


def _in_threads(size: int, act: Callable[[Several], Any]) -> None:
    """Let each of `size` ranks act in a thread of its own, and raise what one of them raised."""
    exchange, ends = Exchange(size), list[Exception]()

    def run(rank: int) -> None:
        try:
            act(Several.over(exchange.member(rank), rank, size))
        except Exception as end:  # noqa: BLE001 - raised again below
            ends.append(end)
            exchange.leave()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for end in sorted(ends, key=lambda end: isinstance(end, Interrupted)):
        raise end


class _Nothing:
    """A journal and a place for snapshots that a trainer which only deals never asks."""
