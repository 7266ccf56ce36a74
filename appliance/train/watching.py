"""What the self-test notes while the production loop runs: between any two steps, everything that went in or out."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from fractions import Fraction
from logging.handlers import BufferingHandler
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from appliance.jobs.record import Record
from appliance.privacy.journal import Journal, JournalState
from appliance.train.encode import Encoded, Encoder
from appliance.train.engines import Ranks
from appliance.train.mechanism import Assembled
from appliance.train.optimizer import Noise
from appliance.train.snapshot import digest
from appliance.train.standins import Row

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

_LINES = 1 << 20


class Material(Protocol):
    """Records of the self-test's own, and what their gradients are."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...

    def number_of(self, record: Record) -> int:
        """Find a record's position."""
        ...

    def row(self, number: int, parameters: int) -> Row:
        """Give the gradient of a record."""
        ...


@dataclass(slots=True)
class Taken:
    """One step as the inner optimiser saw it, and what had happened since the one before.

    Attributes:
      gradient: what the inner optimiser was given, float32 [P]; None for a step that was not finished.
      settings: of the inner optimiser at that moment, of each of its groups.
      weights: after it, float32 [P].
      attempts: journaled by then.
      samples: (units, positions) of every logical batch that was drawn.
      dealt: positions that were dealt to this rank, of every batch.
      encoded: the number of every record that was encoded, and whether something of it is trained.
      computed: the number of every record whose gradient was asked for.
      noise: every noise vector that was drawn.
      order: what happened, in order.
    """

    gradient: Floats | None = None
    settings: list[dict[str, object]] = field(default_factory=list)
    weights: Floats | None = None
    attempts: int = 0
    samples: list[tuple[int, Integers]] = field(default_factory=list)
    dealt: list[Integers] = field(default_factory=list)
    encoded: list[tuple[int, bool]] = field(default_factory=list)
    computed: list[int] = field(default_factory=list)
    noise: list[Integers] = field(default_factory=list)
    order: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Life:
    """One process of a run.

    Attributes:
      start: the weights before it did anything, float32 [P].
      before: attempts that were journaled before it.
      steps: what reached the inner optimiser, replayed releases included.
      unfinished: what happened after the last of them.
      history: (noise multiplier, sample rate, steps) of its accountant.
    """

    start: Floats
    before: int = 0
    steps: list[Taken] = field(default_factory=list)
    unfinished: Taken = field(default_factory=Taken)
    history: list[tuple[float, float, int]] = field(default_factory=list)


@dataclass(slots=True)
class Seen:
    """A run of one rank.

    Attributes:
      lives: its processes, one after the other.
      told: what the journal, the snapshots, the progress, the log and the terminal were told, in order.
      weights: at the end, float32 [P].
      steps, attempts: what the run returned.
    """

    lives: list[Life] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    weights: Floats | None = None
    steps: int = 0
    attempts: int = 0


class Watch:
    """The listeners of one life of one rank, and what they heard since the last step.

    Args:
      life: where finished steps go.
      told: what is told to the world.
      happen: called at every moment; raises to end the life in it.
    """

    def __init__(self, life: Life, told: list[str], happen: Callable[[str], None]) -> None:
        self._life, self._told, self._happen = life, told, happen
        self._numbers: dict[int, tuple[Encoded, int]] = {}  # by identity, which holds as long as they are kept here

    @property
    def taken(self) -> Taken:
        """What was heard since the last step."""
        return self._life.unfinished

    def note(self, moment: str) -> None:
        """Note that something is about to happen."""
        self.taken.order.append(moment)
        self._happen(moment)

    def tell(self, *words: object) -> None:
        """Note what the world is told."""
        self._told.append(" ".join(map(str, words)))

    def encode(self, encoder: Encoder, material: Material, record: Record) -> Encoded:
        """Encode a record, and know it again."""
        made, number = encoder.encode(record), material.number_of(record)
        self._numbers[id(made)] = (made, number)
        self.taken.encoded.append((number, bool(made.positions)))
        return made

    def number_of(self, encoded: Encoded) -> int:
        """Find the number of a record whose gradient is asked for."""
        number = self._numbers[id(encoded)][1]
        self.taken.computed.append(number)
        return number

    def listen(self, mechanism: Assembled, ranks: Ranks, source: Noise, attempts: Callable[[], int]) -> None:
        """Put the listeners in: at the noise, at the deal and at the inner optimiser.

        Args:
          mechanism: of this life.
          ranks: of this life.
          source: where its noise comes from.
          attempts: how many are journaled.
        """
        optimizer, deal = mechanism.optimizer, ranks.deal
        inner: Any = optimizer.original_optimizer
        step = inner.step
        optimizer._noise = _Noise(source, self)

        def dealt(draw: Callable[[], Integers], units: int) -> Integers:
            part = deal(lambda: self._sample(draw, units), units)
            self.taken.dealt.append(np.array(part))
            return part

        def stepped(*_: Any) -> None:
            self.note("apply")
            taken, trainable = self.taken, mechanism.adapter.trainable
            taken.gradient = mechanism.adapter.flatten([_gradient(p) for p in trainable]).cpu().numpy()
            taken.settings, taken.attempts = _settings(optimizer.param_groups), attempts()
            step()
            taken.weights = weights(mechanism)
            self._life.steps.append(taken)
            self._life.unfinished = Taken()
            self._numbers.clear()

        ranks.deal, inner.step = dealt, stepped  # type: ignore[method-assign]

    def _sample(self, draw: Callable[[], Integers], units: int) -> Integers:
        self.note("sample")
        positions = draw()
        self.taken.samples.append((units, np.array(positions)))
        return positions


class _Noise(Noise):
    def __init__(self, source: Noise, watch: Watch) -> None:
        self._source, self._watch = source, watch

    def begin(self, count: int) -> None:
        self._source.begin(count)

    def draw(self, count: int) -> Integers:
        self._watch.note("noise")
        drawn = self._source.draw(count)
        self._watch.taken.noise.append(np.array(drawn))
        return drawn


class WatchedEncoder:
    """The production encoder."""

    def __init__(self, encoder: Encoder, material: Material, watch: Watch) -> None:
        self._encoder, self._material, self._watch = encoder, material, watch
        self.buckets, self.pad = encoder.buckets, encoder.pad

    def encode(self, record: Record) -> Encoded:
        """Encode a record."""
        return self._watch.encode(self._encoder, self._material, record)


class WatchedJournal:
    """The production journal."""

    def __init__(self, journal: Journal, watch: Watch) -> None:
        self._journal, self._watch = journal, watch

    @property
    def state(self) -> JournalState:
        """What has been journaled."""
        return self._journal.state

    def attempt(self, sample_rate: Fraction, noise_multiplier: float) -> int:
        """Journal an attempt."""
        self._watch.note("attempt")
        self._watch.tell("attempt", sample_rate, noise_multiplier)
        return self._journal.attempt(sample_rate, noise_multiplier)

    def record_release(self, step: int, sha256: str) -> None:
        """Journal a release."""
        self._watch.note("release")
        self._watch.tell("release", step, sha256)
        self._journal.record_release(step, sha256)

    def record_checkpoint(self, step: int, sha256: str) -> None:
        """Journal a snapshot."""
        self._watch.note("checkpoint")
        self._watch.tell("checkpoint", step, sha256)
        self._journal.record_checkpoint(step, sha256)


class WatchedSnapshots:
    """Snapshots in memory, as a run keeps them sealed on the disk."""

    def __init__(self, stored: dict[str, bytes], watch: Watch) -> None:
        self._stored, self._watch = stored, watch

    def save(self, name: str, data: bytes) -> None:
        """Store under a name."""
        self._watch.note(f"save {name.partition('-')[0]}")
        self._watch.tell("save", name, digest(data))
        self._stored[name] = data

    def load(self, name: str) -> bytes | None:
        """Load what was stored."""
        return self._stored.get(name)

    def delete(self, name: str) -> None:
        """Remove it."""
        self._watch.note("delete")
        self._watch.tell("delete", name)
        self._stored.pop(name, None)


@contextmanager
def overheard(told: list[str]) -> Iterator[None]:
    """Note what is logged and printed within the block, at its end."""
    printed, handler = io.StringIO(), BufferingHandler(_LINES)
    logger = logging.getLogger()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        with redirect_stdout(printed), redirect_stderr(printed):
            yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
        told += [*(line.getMessage() for line in handler.buffer), printed.getvalue()]


def weights(mechanism: Assembled) -> Floats:
    """Copy the weights of a mechanism's adapter, float32 [P]."""
    flat: Floats = mechanism.adapter.flatten([p.detach() for p in mechanism.adapter.trainable]).cpu().numpy()
    return flat


def _gradient(parameter: Any) -> Any:
    return parameter.grad if parameter.grad is not None else parameter.detach() * 0


def _settings(groups: Sequence[dict[str, Any]]) -> list[dict[str, object]]:
    return [{name: value for name, value in group.items() if name != "params"} for group in groups]
