"""T4 and T5, the loop: counts, releases and weights of driven runs, and what does not follow the data.

The production loop is driven over all phases of the plan, beyond two snapshots. In the first drive every release is
compared with the sum and the noise of its step, and the weights with what follows from the releases. In the next two
the releases are forced to be equal while all data differ: then everything that is told or stored must be equal too.
The last two are killed and resumed, and shared by several ranks.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from appliance.audit.bounds import by_chance, check, frequency
from appliance.audit.driven import Script, Truth, follows, in_units, is_a_step, match
from appliance.audit.noise import deviation_of, judge_driven
from appliance.audit.population import Population, shortened
from appliance.audit.sampling import Batches
from appliance.audit.tap import Floats, Integers, Life, Moment, Seen, Taken, Tap
from appliance.jobs.plan import PrivacyPlan
from appliance.jobs.selftest import Check

_STEPS, _SPARE = 24, 12
_RANKS, _RANK_STEPS = 3, 12
_BATCH, _FEW = 16.0, 0.35
_KILLS: tuple[Moment, ...] = (
    ("sample", 3),
    ("noise", 6),
    ("save release", 8),
    ("release", 9),
    ("apply", 11),
    ("save snapshot", 1),
    ("checkpoint", 2),
    ("delete", 5),
)
_OTHER_NORMS = (1e-3, 1e4)


class Drives:
    """The drives of one mechanism, and the batches that were drawn in them.

    Args:
      tap: of the mechanism.
      plan: what it claims to be.
    """

    def __init__(self, tap: Tap, plan: PrivacyPlan) -> None:
        self._plan, self._narrow, self._loop = plan, tap.narrowed(), tap.loop()
        self._short = shortened(plan, _STEPS, _SPARE)
        self._deviation = deviation_of(tap)  # the narrow one draws from the same source
        self._batches: list[Batches] = []
        self._releases = [tap.draw(self._narrow.parameters) for _ in range(self._short.steps)]

    @property
    def batches(self) -> list[Batches]:
        """What was drawn in the drives so far, by phase and population."""
        return self._batches

    def loop(self) -> list[Check]:
        """Drive a run with its own noise."""
        population = Population(self._short, _BATCH, secrets.randbits(32))
        (seen,) = self._loop.drive(self._short, population)
        truth = Truth(self._narrow, self._short, population)
        (life,) = seen.lives
        errors = [truth.error([taken]) for taken in life.steps] or [np.inf]
        self._keep(truth, [seen])
        return [
            check("loop.releases", max(errors), 1.0, len(errors), passed=max(errors) <= 1),
            _states("loop.counts", self._counts(seen, truth.script), len(life.steps)),
            *self._noise(life),
            _states("loop.weights", follows(life.start, life.steps, seen.weights), len(life.steps)),
        ]

    def invariance(self) -> list[Check]:
        """Drive two runs on other data, with equal releases."""
        seeds = secrets.randbits(31)
        many = Population(self._short, _BATCH, 2 * seeds)
        few = Population(self._short, _FEW, 2 * seeds + 1, _OTHER_NORMS)
        seen = [self._loop.drive(self._short, data, forced=self._releases)[0] for data in (many, few)]
        for one, data in zip(seen, (many, few), strict=True):
            self._keep(Truth(self._narrow, self._short, data), [one])
        told = seen[0].told == seen[1].told and (seen[0].steps, seen[0].attempts) == (seen[1].steps, seen[1].attempts)
        steps = [[taken for life in one.lives for taken in life.steps] for one in seen]
        same = len(steps[0]) == len(steps[1]) and all(map(_look_alike, *steps))
        exact = match(seen[1].lives[0], self._releases, Script(self._short), self._narrow.grid)
        return [
            _states("loop.invariance", told and same, len(seen[0].told)),
            _states("loop.forced", exact == list(range(self._short.steps)), len(exact)),
            self._empty(),
        ]

    def resume(self) -> list[Check]:
        """Drive a run that is killed in every kind of moment."""
        population = Population(self._short, _BATCH, secrets.randbits(32))
        (seen,) = self._loop.drive(self._short, population, forced=self._releases, kills=_KILLS)
        truth = Truth(self._narrow, self._short, population)
        self._keep(truth, [seen])
        return _Resumed(seen, self._releases, truth.script, self._narrow.grid).judge()

    def ranks(self) -> list[Check]:
        """Drive a run of several ranks."""
        plan = shortened(self._plan, _RANK_STEPS, _SPARE)
        population = Population(plan, _BATCH, secrets.randbits(32))
        seen = self._loop.drive(plan, population, ranks=_RANKS)
        truth = Truth(self._narrow, plan, population)
        self._keep(truth, seen[:1])
        steps = [one.lives[0].steps for one in seen]
        errors = [truth.error(ranks) for ranks in zip(*steps, strict=True)] or [np.inf]
        alike = all(
            _same(a.gradient, b.gradient) and _same(a.weights, b.weights)
            for s in steps[1:]
            for a, b in zip(steps[0], s, strict=True)
        )
        history = all(one.lives[0].history == seen[0].lives[0].history for one in seen)
        quiet = not any(moment != "apply" for one in seen[1:] for taken in one.lives[0].steps for moment in taken.order)
        return [
            check("ranks.releases", max(errors), 1.0, len(errors), passed=max(errors) <= 1),
            _states("ranks.counts", self._counts(seen[0], truth.script) and history and quiet, len(errors)),
            _states("ranks.weights", alike and follows(seen[0].lives[0].start, steps[0], seen[0].weights), len(errors)),
            _states("ranks.agree", self._loop.disagree(_RANKS), _RANKS),
        ]

    def _counts(self, seen: Seen, script: Script) -> bool:
        """Compare attempts, samples, noise, releases, applications and the accountant with the plan, one by one."""
        (life,) = seen.lives
        count = script.plan.steps
        told = [line for line in seen.told if line.startswith("attempt ")]
        claimed = [f"attempt {script.rate(n)} {script.plan.noise_multiplier}" for n in range(1, count + 1)]
        return (
            len(life.steps) == seen.steps == seen.attempts == count
            and [taken.attempts for taken in life.steps] == list(range(1, count + 1))
            and all(is_a_step(taken.order) for taken in life.steps)
            and told == claimed
            and life.history == script.history(1, count)
        )

    def _noise(self, life: Life) -> list[Check]:
        """Judge the noise that the steps drew. Where one had not one vector, their count has failed already."""
        drawn = [vector for taken in life.steps for vector in taken.noise]
        whole = drawn and all(vector.shape == (self._narrow.parameters,) for vector in drawn)
        return [judge_driven(drawn, self._deviation)] if whole else []

    def _empty(self) -> Check:
        """Count the empty batches of few units: a step without records is a step, and nobody is put into it."""
        drawn = [(batch, group) for group in self._batches[-len(self._short.schedule) :] for batch in group.drawn]
        # Chernoff's bound holds for the mean of unlike probabilities too (Hoeffding 1963).
        rate = sum((1 - group.rate) ** group.units for _, group in drawn) / len(drawn)
        empty = sum(not len(batch) for batch, _ in drawn)
        return by_chance("loop.empty", frequency(empty, len(drawn), rate), 1)

    def _keep(self, truth: Truth, seen: Sequence[Seen]) -> None:
        """Keep the batches that were drawn, by phase."""
        drawn: list[list[Integers]] = [[] for _ in truth.script.plan.schedule]
        for life in (life for one in seen for life in one.lives):
            attempt = life.before
            for taken in (*life.steps, life.unfinished):
                attempt += taken.order.count("attempt")
                for _, positions in taken.samples:
                    drawn[truth.script.phase(attempt)].append(positions)
        for phase, batches in enumerate(drawn):
            rate = float(truth.script.plan.schedule[phase].sample_rate)
            if batches:
                self._batches.append(Batches(truth.units(phase), rate, batches))


@dataclass(frozen=True, slots=True)
class _Resumed:
    """A run of many lives.

    Attributes:
      seen: the run.
      forced: what its steps released.
      script: of its plan.
      grid: the spacing of the integers.
    """

    seen: Seen
    forced: Sequence[Integers]
    script: Script
    grid: float

    def judge(self) -> list[Check]:
        """Check charges, replayed releases and weights."""
        lives = self.seen.lives
        steps = [match(life, self.forced, self.script, self.grid) for life in lives]
        return [
            _states("resume.charged", self._charged(), self.seen.attempts),
            _states("resume.steps", self._in_order(steps), len(lives)),
            _states("resume.weights", self._weights(steps), len(lives)),
        ]

    def _charged(self) -> bool:
        """Whether every batch that was drawn had an attempt of its own before it, which outlived every death."""
        attempts = 0
        for life in self.seen.lives:
            if life.before != attempts:
                return False
            made = [moment for taken in (*life.steps, life.unfinished) for moment in taken.order]
            pairs = [moment for moment in made if moment in ("attempt", "sample")]
            attempts += pairs.count("attempt")
            if any(one == next_ for one, next_ in pairwise(pairs)) or pairs[:1] == ["sample"]:
                return False
            counted = sum(count for _, _, count in life.history)
            if life.history != self.script.history(life.before + 1, life.before + counted):
                return False
        return self.seen.attempts == attempts and self.seen.steps == self.script.plan.steps

    def _in_order(self, steps: list[list[int]]) -> bool:
        """Whether each life goes on from a step that was taken, replays without a draw, and then takes whole steps."""
        done = 0
        for life, numbers in zip(self.seen.lives, steps, strict=True):
            if numbers and (numbers != list(range(numbers[0], numbers[0] + len(numbers))) or numbers[0] > done):
                return False
            for taken, number in zip(life.steps, numbers, strict=True):
                replayed = number < done
                if replayed != (not taken.samples and not taken.noise):
                    return False
                if not replayed and not is_a_step(taken.order):
                    return False
                done = max(done, number + 1)
            done += {"attempt", "apply"} <= set(life.unfinished.order)  # journaled, and dead before it was applied
        return done == self.script.plan.steps

    def _weights(self, steps: list[list[int]]) -> bool:
        """Whether the weights follow from one application of each release, divided by the batch of its attempt."""
        last: dict[int, Taken] = {}
        for life, numbers in zip(self.seen.lives, steps, strict=True):
            last |= dict(zip(numbers, life.steps, strict=True))
        if sorted(last) != list(range(self.script.plan.steps)):
            return False
        if not all(self._divided(last[number], self.forced[number], at) for number, at in self._attempts(steps)):
            return False
        return follows(self.seen.lives[0].start, [last[n] for n in sorted(last)], self.seen.weights)

    def _attempts(self, steps: list[list[int]]) -> list[tuple[int, int]]:
        """List (step, attempt in which it was released)."""
        found: dict[int, int] = {}
        for life, numbers in zip(self.seen.lives, steps, strict=True):
            attempt = life.before
            for taken, number in zip(life.steps, numbers, strict=True):
                attempt += taken.order.count("attempt")
                if taken.samples:
                    found[number] = attempt
            if "apply" in life.unfinished.order and "attempt" in life.unfinished.order:
                found[numbers[-1] + 1 if numbers else 0] = attempt + 1
        return sorted(found.items())

    def _divided(self, taken: Taken, target: Integers, attempt: int) -> bool:
        if taken.gradient is None:
            return False
        apart = np.abs(in_units(taken.gradient, self.script.batch(attempt), self.grid) - target)
        return bool(np.all(apart <= 0.01 + 2.0**-22 * np.abs(target)))


def _look_alike(one: Taken, other: Taken) -> bool:
    same = one.settings == other.settings and one.attempts == other.attempts and one.order == other.order
    return same and _same(one.gradient, other.gradient) and _same(one.weights, other.weights)


def _same(one: Floats | None, other: Floats | None) -> bool:
    return one is not None and other is not None and one.tobytes() == other.tobytes()


def _states(name: str, holds: bool, count: int) -> Check:
    return check(name, float(not holds), 0.0, count, passed=holds)
