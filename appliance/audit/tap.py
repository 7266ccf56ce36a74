"""What the self-test needs of a mechanism and of its loop: ways to drive them and what comes out, nothing between."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from appliance.jobs.plan import PrivacyPlan
from appliance.jobs.record import Record

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]
Words = NDArray[np.uint64]
Row = Callable[[Floats], None]
"""Writes one per-record gradient into a vector of zeros, float32 [P]."""
Units = Sequence[Sequence[Row]]
"""The rows of every unit of privacy of one logical batch."""
Entropy = Callable[[int], bytes]
"""Gives so many bytes in place of the operating system's generator."""
Moment = tuple[str, int]
"""What is about to happen (sample, noise, save release, release, apply, save snapshot, checkpoint, delete), and the
how manieth time: there a life of a run can be ended."""


class Claim(Protocol):
    """What a mechanism says that it does to a unit's gradient.

    Attributes:
      clip_norm: C, the claimed bound on what one unit moves a release by.
      clipping: by which rule.
      grid: the spacing of the integers to which noise is added.
    """

    clip_norm: float
    clipping: Literal["fixed", "normalised"]
    grid: float


class Tap(Claim, Protocol):
    """A mechanism as the self-test sees it.

    Attributes:
      parameters: P, the trainable parameters.
      tensors: (name, start, stop) of every trainable tensor in the flat vector.
      noise_std: sigma C, the claimed standard deviation of the noise.
      rows: how many rows a micro-batch may have.
      lengths: the padded lengths that a record can have, ascending.
      multipliers: of the levels of which the noise is composed; 1 for the finest.
    """

    parameters: int
    tensors: tuple[tuple[str, int, int], ...]
    noise_std: float
    rows: int
    lengths: tuple[int, ...]
    multipliers: tuple[int, ...]

    @property
    def proved(self) -> bool:
        """Whether the row counts of micro-batches are proved: then no record's bits depend on another record."""
        ...

    def narrowed(self) -> Tap:
        """Tap the same mechanism with a much smaller adapter. Its noise is that of the whole one."""
        ...

    def loop(self) -> Loop:
        """Tap the loop that trains with this mechanism."""
        ...

    def release(
        self, units: Units, noise: Integers | None = None, lengths: Sequence[Sequence[int]] | None = None
    ) -> Floats:
        """Release the noised sum, float32 [P], of units with these gradients; with `noise`, that noise.

        `lengths` has the padded length of every row; None is the shortest for all.
        """
        ...

    def release_noised(self, units: Units) -> tuple[list[Integers], Floats]:
        """Do the same with the production noise: every noise vector that was drawn, int64 [P], and the release."""
        ...

    def release_records(self, units: Sequence[Sequence[Record]], noise: Integers | None = None) -> Floats:
        """Do the same for synthetic records, through forward and backward pass."""
        ...

    def release_scripted(self, script: Callable[[int], Words]) -> Floats:
        """Release the empty batch while `script` stands for the words of every keystream, uint64 [n]."""
        ...

    def draw(self, count: int | None = None, entropy: Entropy | None = None) -> Integers:
        """Draw a noise vector of the production source, int64 [count or P], in units of the grid.

        `entropy` stands for the operating system's generator, if given.
        """
        ...


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


class Taken(Protocol):
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
      order: the moments, in order.
    """

    gradient: Floats | None
    settings: list[dict[str, object]]
    weights: Floats | None
    attempts: int
    samples: list[tuple[int, Integers]]
    dealt: list[Integers]
    encoded: list[tuple[int, bool]]
    computed: list[int]
    noise: list[Integers]
    order: list[str]


class Life(Protocol):
    """One process of a run.

    Attributes:
      start: the weights before it did anything, float32 [P].
      before: attempts that were journaled before it.
      history: (noise multiplier, sample rate, steps) of its accountant.
    """

    start: Floats
    before: int
    history: list[tuple[float, float, int]]

    @property
    def steps(self) -> Sequence[Taken]:
        """What reached the inner optimiser, replayed releases included."""
        ...

    @property
    def unfinished(self) -> Taken:
        """What happened after the last of them."""
        ...


class Seen(Protocol):
    """A run of one rank.

    Attributes:
      told: what the journal, the snapshots, the progress, the log and the terminal were told, in order.
      weights: at the end, float32 [P].
      steps, attempts: what the run returned.
    """

    told: list[str]
    weights: Floats | None
    steps: int
    attempts: int

    @property
    def lives(self) -> Sequence[Life]:
        """Its processes, one after the other."""
        ...


class Deal(Protocol):
    """Deals logical batches as the loop does."""

    def __call__(self, phase: int, entropy: Entropy | None = None) -> tuple[int, Integers]:
        """Deal a batch of a phase: how many units there are, and the positions that were dealt."""
        ...


class Loop(Protocol):
    """The loop that trains, as the self-test sees it."""

    def dealer(self, plan: PrivacyPlan, material: Material) -> Deal:
        """Make a trainer for so many records, and give its way to deal a batch."""
        ...

    def drive(
        self,
        plan: PrivacyPlan,
        material: Material,
        *,
        forced: Sequence[Integers] | None = None,
        kills: Collection[Moment] = (),
        ranks: int = 1,
    ) -> Sequence[Seen]:
        """Run the loop to the end of the plan; what each rank saw.

        Args:
          plan: as long as the drive is to be.
          material: what is trained on.
          forced: what the steps release in place of what they would, in grid units, [P] each.
          kills: where a life ends and another begins; not of several ranks.
          ranks: how many take the steps together.
        """
        ...

    def disagree(self, ranks: int = 2) -> bool:
        """Let ranks compare weights of which one rank's differ in the last bit; whether all of them refuse."""
        ...
