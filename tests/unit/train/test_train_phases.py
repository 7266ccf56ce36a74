"""A curriculum and a user-level plan through the loop: who is sampled, at which rate, divided by what, charged how."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from appliance.jobs.plan import Filter, Phase, PrivacyPlan, UnitOfPrivacy
from appliance.jobs.record import Record
from appliance.privacy.accounting import charged_epsilon, composition, epsilon_pld
from appliance.train.accounting import spent
from appliance.train.loop import Trainer
from tests.unit.train import rig
from tests.unit.train.rig import FixedSampler, MemoryJournal, MemorySnapshots, NoNoise, job, load, people, plan

PYTHON = Filter(field="lang", values=("python",))
PHASES = (
    Phase(name="basics", steps=2, declared_units=10, expected_batch_size=5, where=PYTHON),
    Phase(name="all", steps=3, declared_units=40, expected_batch_size=10),
)


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model_dir)


def phased(**changes: Any) -> PrivacyPlan:
    return plan(**({"steps": 5, "spare_steps": 2, "phases": PHASES} | changes))


def labelled(count: int, units: int | None = None) -> list[Record]:
    """Every third record is python, the others are c or have no language."""
    languages = ((("lang", "python"),), (("lang", "c"),), ())
    return [dataclasses.replace(r, fields=languages[n % 3]) for n, r in enumerate(people(count, units))]


class Watching(Trainer):
    """A trainer that tells what it sampled: (units that could be, those in the batch, divisor) for each attempt."""

    def watch(self) -> list[tuple[int, Sequence[Sequence[Any]], int]]:
        seen: list[tuple[int, Sequence[Sequence[Any]], int]] = []
        accumulate, apply = self._engine.accumulate, self._optimizer.apply
        batches: list[Any] = []

        def accumulated(units: Any) -> None:
            batches.append(units)
            accumulate(units)

        def applied(gradient: Any) -> None:
            phase = self._plan.phase_at(self._journal.state.attempts)
            seen.append((self._samplers[phase]._units, batches[-1], self._optimizer.expected_batch_size))
            apply(gradient)

        self._engine.accumulate = accumulated  # type: ignore[method-assign]
        self._optimizer.apply = applied
        self.run()
        return seen


def trainer(directory: Path, tokenizer: Any, values: PrivacyPlan, records: list[Record], **parts: Any) -> Watching:
    journal, snapshots = parts.pop("journal", MemoryJournal()), parts.pop("snapshots", MemorySnapshots())
    asked = job(values)
    kept = (records, journal, snapshots, lambda _: None)
    made: Watching = rig.trainer(asked, load(directory), tokenizer, *kept, kind=Watching, **parts)
    return made


def test_each_phase_samples_its_own_records_at_its_own_rate(tiny_model_dir: Path, tokenizer: Any) -> None:
    made = trainer(tiny_model_dir, tokenizer, phased(), labelled(30))
    assert [sampler._rate for sampler in made._samplers] == [Fraction(1, 2), Fraction(1, 4)]
    python = {made._encoder.encode(record).ids for record in labelled(30)[::3]}
    seen = made.watch()
    assert [units for units, _, _ in seen] == [10, 10, 30, 30, 30]
    assert all(record.ids in python for _, batch, _ in seen[:2] for unit in batch for record in unit)
    assert [divisor for *_, divisor in seen] == [5, 5, 10, 10, 10]
    assert made._accountant.history == [(1.0, 0.5, 2), (1.0, 0.25, 3)]


def test_a_subject_is_sampled_as_one_and_brings_only_its_matching_records(tiny_model_dir: Path, tokenizer: Any) -> None:
    unit = UnitOfPrivacy(kind="subject", key="who", max_records=8)
    whole = Phase(name="basics", steps=1, declared_units=4, expected_batch_size=4, where=PYTHON)
    rest = Phase(name="all", steps=1, declared_units=4, expected_batch_size=4)
    values = phased(unit=unit, declared_units=4, expected_batch_size=4, steps=2, phases=(whole, rest))
    records = labelled(24, units=4)  # six records of each of four people, two of them python
    made = trainer(tiny_model_dir, tokenizer, values, records)
    (first, batch, _), (second, whole_batch, _) = made.watch()
    assert first == second == 4  # the sampler tosses a coin for each person, whoever many records there are
    assert [len(group) for group in batch] == [2, 2, 2, 2]
    assert [len(group) for group in whole_batch] == [6, 6, 6, 6]
    # Grouped before the clip: four people move the sum by at most four times the clip norm, with 24 records.
    made._engine.accumulate(whole_batch)
    assert float(made._engine.sum.take().norm()) * made._engine.sum.grid <= 4 * values.max_grad_norm


def test_people_without_a_matching_record_are_not_sampled(tiny_model_dir: Path, tokenizer: Any) -> None:
    unit = UnitOfPrivacy(kind="subject", key="who", max_records=8)
    records = [dataclasses.replace(r, fields=(("lang", "python"),) if r.unit == "u1" else ()) for r in people(12, 4)]
    made = trainer(tiny_model_dir, tokenizer, phased(unit=unit), records)
    assert [len(units) for units in made._units] == [1, 4]


class Killed(Exception):
    """Stands for a kill."""


def test_a_lost_attempt_moves_no_phase_and_resuming_divides_as_before(tiny_model_dir: Path, tokenizer: Any) -> None:
    journal, snapshots = MemoryJournal(), MemorySnapshots()

    def made(start: int = 0) -> Watching:
        sampler = FixedSampler(10, start=start)
        return trainer(
            tiny_model_dir, tokenizer, phased(), labelled(30), journal=journal, snapshots=snapshots,
            sampler=sampler, noise=NoNoise(),
        )  # fmt: skip

    first = made()
    release = first._optimizer.release
    first._optimizer.release = lambda: (_ for _ in ()).throw(Killed)
    with pytest.raises(Killed):
        first.run()
    first._optimizer.release = release
    second = made()
    seen = second.watch()  # the first attempt is lost: one basic step is missing and one of the others is made up
    assert [divisor for *_, divisor in seen] == [5, 10, 10, 10, 10]
    third = made()
    third._snapshots.stored.pop("snapshot", None)  # type: ignore[attr-defined]
    assert [rate for rate, _ in phased().rates(journal.state.attempts)] == [Fraction(1, 2), Fraction(1, 4)]
    assert second._accountant.history == [(1.0, 0.5, 1), (1.0, 0.25, 4)]


def test_a_replayed_release_is_divided_by_the_batch_of_its_attempt(tiny_model_dir: Path, tokenizer: Any) -> None:
    journal, snapshots = MemoryJournal(), MemorySnapshots()

    def made() -> Watching:
        return trainer(
            tiny_model_dir, tokenizer, phased(), labelled(30), journal=journal, snapshots=snapshots,
            sampler=FixedSampler(10, start=journal.state.attempts), noise=NoNoise(),
        )  # fmt: skip

    whole = made().run().state
    journal, snapshots = MemoryJournal(), MemorySnapshots()
    first = made()
    snapshot = first._snapshot
    first._snapshot = lambda: (_ for _ in ()).throw(Killed)  # type: ignore[method-assign]
    with pytest.raises(Killed):
        first.run()  # five releases are on disk and no state
    first._snapshot = snapshot  # type: ignore[method-assign]
    again = made()
    divisors: list[int] = []
    apply = again._optimizer.apply
    again._optimizer.apply = lambda g: (divisors.append(again._optimizer.expected_batch_size), apply(g))[1]
    resumed = again.run()
    assert divisors == [5, 5, 10, 10, 10]
    assert all(torch.equal(resumed.state[name], whole[name]) for name in whole)


def test_phases_compose_sequentially_and_both_accountants_agree() -> None:
    values = phased(noise_multiplier=1.5, steps=50, phases=(
        Phase(name="a", steps=20, declared_units=10, expected_batch_size=5, where=PYTHON),
        Phase(name="b", steps=30, declared_units=40, expected_batch_size=4),
    ))  # fmt: skip
    said = spent(values, values.attempts)
    assert charged_epsilon(said.epsilon_pld, said.epsilon_prv) >= said.epsilon_pld
    delta = values.delta - values.sampler_delta
    alone = [epsilon_pld([one], delta) for one in composition(values, values.attempts)]
    assert max(alone) < said.epsilon_pld <= sum(alone)
    # As if there were no curriculum, at the rate of its first or of its last phase: too much, and too little.
    first, last = (
        epsilon_pld([dataclasses.replace(one, attempts=values.attempts)], delta)
        for one in composition(values, values.attempts)
    )
    assert last < said.epsilon_pld < first


def test_a_sampler_at_another_rate_than_the_plan_is_found(tiny_model_dir: Path, tokenizer: Any) -> None:
    from appliance.errors import GateFailed

    made = trainer(tiny_model_dir, tokenizer, phased(), labelled(30))
    made._enter(1)  # accounts at the rate of the second phase
    made._phase = 0  # while the first one is sampled
    with pytest.raises(GateFailed, match="accountant did not see"):
        made.run()
