"""Does the order of a curriculum matter? The same batches under the same noise, in three orders; nothing else differs.

`python bench/curriculum.py [--quick] [--json]`. banking77 with SmolLM2, in thirds by the number of words of a
question, which a run file would name as a kept column. Each third has the same number of records, the same steps and
the same sample rate, so every order is a plan of the same epsilon. With one seed, all orders train on the very same
batches (the n-th of a third is the same whenever its turn comes), from the same first weights, and the n-th step of
every order has the same noise. The orders: short questions first, long ones first, and all steps shuffled.

What trains is the loop of `train` on phases of its plan, with sampler and noise from a seed instead of the kernel: so
no such adapter can be released. What judges is the meter of `evaluate run`, on the test split, on the loss of a label.
An order is called better or worse only where it is so over seeds (Student's t) and over test records (bootstrap).
"""

from __future__ import annotations

import csv
import json
import math
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import stdev

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import banking
import media
import numpy as np
import torch
from banking import mean_interval
from figures import Figure, Report, arguments
from numpy.typing import NDArray
from safetensors.torch import save_file

from appliance.evaluate.losses import Meter
from appliance.evaluate.variants import Variants
from appliance.flows.run.plan import default_rate
from appliance.jobs.job import EngineOptions
from appliance.jobs.lora import LoraSpec
from appliance.jobs.plan import Filter, Phase, PrivacyPlan, UnitOfPrivacy
from appliance.jobs.record import Record
from appliance.jobs.train import TrainSpec
from appliance.models.loading import inspect, load
from appliance.privacy.plan import make_plan
from appliance.privacy.sampler import noise_variance
from appliance.significance.paired import compare_scores
from appliance.significance.planning import detectable_mean
from appliance.train.encode import Encoder
from appliance.train.loop import Trainer
from appliance.train.mechanism import assemble
from appliance.train.optimizer import Noise
from appliance.train.proofs import prove
from appliance.train.rows import RowCounts
from appliance.train.trained import Trained
from tests.unit.train.rig import MemoryJournal, MemorySnapshots

THIRDS = {"short": range(1, 9), "middle": range(9, 13), "long": range(13, 31)}
"""Words of a question. Of the training split 38, 35 and 23 % are in them; longer ones are left out."""
ORDERS = ("shuffled", "short first", "long first")
"""The first one is what the others are compared with."""
EPSILON = 8.0
ENGINE = EngineOptions(dtype="bfloat16", physical_tokens=1024)
LORA = LoraSpec(r=8, alpha=16.0, targets="all-linear", freeze_a=True)


@dataclass(frozen=True)
class Size:
    """Training records of a third, test records in all, how many a step expects, steps of a third, and seeds."""

    units: int
    held_out: int
    batch: int
    steps: int
    seeds: int

    @property
    def all_steps(self) -> int:
        return self.steps * len(THIRDS)


FULL = Size(units=300, held_out=208, batch=36, steps=4, seeds=6)
QUICK = Size(units=20, held_out=24, batch=5, steps=2, seeds=5)


# --- data -----------------------------------------------------------------------------------------------------------


def records(part: str, count: int, *, equal: bool) -> list[Record]:
    """The first `count` records of a fixed shuffle that are in a third; with `equal` so many of each third."""
    rows = list(csv.DictReader((banking.DATA / f"{part}.csv").read_text(encoding="utf-8").splitlines()))
    found: list[Record] = []
    taken: Counter[str] = Counter()
    for at in np.random.default_rng(11).permutation(len(rows)):
        third = third_of(rows[at]["text"])
        if third is None or (taken[third] if equal else len(found)) >= count:
            continue
        taken[third] += 1
        found.append(record(len(found), rows[at]["text"], rows[at]["category"].replace("_", " "), third))
    return found


def record(number: int, question: str, label: str, third: str) -> Record:
    """A question and the name of its intent, with the column that the phases filter by."""
    parts = (("prompt", f"{question}\nIntent:"), ("completion", f" {label}"))
    return Record(unit=str(number), kind="completion", parts=parts, fields=(("third", third),))


def third_of(question: str) -> str | None:
    """In which third a question is, by its own words alone; None for the longest."""
    return next((name for name, words in THIRDS.items() if len(question.split()) in words), None)


# --- order ----------------------------------------------------------------------------------------------------------


def turns(order: str, steps: int, seed: int) -> list[str]:
    """Whose turn it is at each step: every third has `steps` of them in every order."""
    if order == "shuffled":
        each = [third for third in THIRDS for _ in range(steps)]
        return [each[at] for at in np.random.default_rng([seed, 1]).permutation(len(each))]
    names = list(THIRDS) if order == "short first" else list(THIRDS)[::-1]
    return [third for third in names for _ in range(steps)]


def phases(order: str, size: Size, seed: int) -> tuple[Phase, ...]:
    """The order as phases of a plan: neighbouring steps of one third are one phase."""
    found: list[Phase] = []
    for third in turns(order, size.steps, seed):
        where = Filter(field="third", values=(third,))
        if found and found[-1].where == where:
            found[-1] = found[-1].model_copy(update={"steps": found[-1].steps + 1})
        else:
            name = f"phase-{len(found) + 1}"
            one = Phase(name=name, steps=1, declared_units=size.units, expected_batch_size=size.batch, where=where)
            found.append(one)
    return tuple(found)


class SameBatches:
    """The n-th batch of a third is a function of seed, third and n, whatever the order."""

    def __init__(self, order: str, size: Size, seed: int) -> None:
        self._turns, self._size, self._seed = turns(order, size.steps, seed), size, seed
        self._made: list[str] = []

    def draw(self) -> NDArray[np.int64]:
        third = self._turns[len(self._made)]
        key = [self._seed, 2, list(THIRDS).index(third), self._made.count(third)]
        self._made.append(third)
        coins = np.random.default_rng(key).random(self._size.units)
        return np.flatnonzero(coins < self._size.batch / self._size.units).astype(np.int64)


class SameNoise(Noise):
    """The noise of the n-th step is a function of seed and n; rounded normal numbers of the plan's variance."""

    def __init__(self, deviation: float, seed: int) -> None:
        self._deviation, self._seed, self._step = deviation, seed, 0

    def draw(self, count: int) -> NDArray[np.int64]:
        self._step += 1
        values = np.random.default_rng([self._seed, 3, self._step]).standard_normal(count)
        return np.rint(values * self._deviation).astype(np.int64)


# --- training and judging -------------------------------------------------------------------------------------------


@dataclass
class Bench:
    """What all runs share."""

    model_dir: Path
    size: Size
    training: list[Record]
    plan: PrivacyPlan
    parameters: int
    proved: RowCounts | None = None

    def spec(self, seed: int = 0) -> TrainSpec:
        return TrainSpec(lr=default_rate(self.size.all_steps), max_tokens=64, init_seed=seed, template="none")

    def train(self, order: str, seed: int) -> Trained:
        """An adapter trained in this order."""
        plan = self.plan.model_copy(update={"phases": phases(order, self.size, seed)})
        model, tokenizer = load(self.model_dir, getattr(torch, ENGINE.dtype))
        variance = noise_variance(plan.noise_multiplier, plan.max_grad_norm, self.parameters)
        noise = SameNoise(math.sqrt(variance), seed)
        made = assemble(plan, LORA, self.spec(seed), ENGINE, model, tokenizer, noise)
        self.proved = prove(made.engine, made.encoder.buckets, self.proved)
        kept = (self.training, MemoryJournal(), MemorySnapshots(), lambda public: None)
        return Trainer(made, plan, "bench", *kept, sampler=SameBatches(order, self.size, seed)).run()

    def measure(self, adapters: dict[str, Path], held_out: list[Record]) -> NDArray[np.float64]:
        """Losses of the test records, nat per token [records, 1 + adapters]: the base, then the adapters."""
        model, tokenizer = load(self.model_dir, getattr(torch, ENGINE.dtype))
        variants = Variants(model.eval())
        for name, directory in adapters.items():
            variants.attach(name, directory)
        encoder = Encoder(tokenizer, self.spec())
        meter = Meter(variants, encoder.pad, ENGINE.physical_tokens or 1024)
        found: NDArray[np.float64] = meter.measure([encoder.encode(one) for one in held_out]).numpy()
        return found


def prepared(model_dir: Path, size: Size) -> Bench:
    """The plan of every order: epsilon is that of the curriculum, whose phases are composed one after the other."""
    parameters = LORA.trainable(inspect(model_dir).shapes)
    plan = planned(size, parameters, phases("short first", size, 0))
    return Bench(model_dir, size, records("train", size.units, equal=True), plan, parameters)


def planned(size: Size, parameters: int, curriculum: tuple[Phase, ...]) -> PrivacyPlan:
    """A plan of `size`, with a curriculum or without one."""
    return make_plan(
        unit=UnitOfPrivacy(), declared_units=size.units * len(THIRDS), expected_batch_size=size.batch,
        steps=size.all_steps, spare_steps=0, epsilon=EPSILON, delta=None, clipping="normalised", max_grad_norm=1.0,
        trainable_parameters=parameters, phases=curriculum,
    )  # fmt: skip


def write(trained: Trained, directory: Path) -> Path:
    """Write an adapter for the meter; `save_adapter` refuses one whose noise came from a seed."""
    directory.mkdir()
    save_file(trained.state, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    (directory / "adapter_config.json").write_text(json.dumps(trained.config), encoding="utf-8")
    return directory


def measured(bench: Bench, work: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Losses of the base [records], and of all runs [orders, seeds, records]."""
    places: dict[str, Path] = {}
    for seed in range(bench.size.seeds):
        for order in ORDERS:
            begun = time.monotonic()
            name = f"{order} {seed}"
            places[name] = write(bench.train(order, seed), work / name.replace(" ", "-"))
            print(f"{name}: {time.monotonic() - begun:.1f} s", file=sys.stderr, flush=True)
    found = bench.measure(places, records("test", bench.size.held_out, equal=False))
    return found[:, 0], found[:, 1:].T.reshape(bench.size.seeds, len(ORDERS), -1).swapaxes(0, 1)


# --- figures --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Effect:
    """How one order differs from another, nat per token; positive: the loss is larger.

    Attributes:
      low, high: 95 % over seeds.
      p: over test records, of the means over seeds.
      detectable: what so many seeds would show four times in five.
    """

    change: float
    low: float
    high: float
    p: float
    detectable: float

    @property
    def verdict(self) -> str:
        if self.p >= 0.05 or self.low <= 0 <= self.high:
            return "not distinguishable"
        return "worse" if self.change > 0 else "better"


def effect(control: NDArray[np.float64], order: NDArray[np.float64]) -> Effect:
    """Compare two orders in pairs; losses [seeds, records] of each."""
    by_seed = (order - control).mean(axis=1).tolist()
    change, low, high = mean_interval(by_seed)
    by_record = compare_scores(control.mean(axis=0).tolist(), order.mean(axis=0).tolist())
    return Effect(change, low, high, by_record.p, detectable_mean(len(by_seed), stdev(by_seed)))


def figures(bench: Bench, base: NDArray[np.float64], losses: NDArray[np.float64]) -> list[Figure]:
    """The loss of each order, its difference from the shuffled one, and what a curriculum costs in noise."""
    of = dict(zip(ORDERS, losses, strict=True))
    made = [_loss(order, of[order], base) for order in ORDERS]
    made += [_change(order, ORDERS[0], of, base) for order in ORDERS[1:]]
    return [*made, _change("short first", "long first", of, base), _noise(bench)]


def _name(order: str) -> str:
    return order.replace(" ", "_")


def _loss(order: str, losses: NDArray[np.float64], base: NDArray[np.float64]) -> Figure:
    mean, low, high = mean_interval(losses.mean(axis=1).tolist())
    note = f"base {base.mean():.3f}; {losses.shape[1]} test records; spread: 95 % over seeds"
    return Figure(name=f"loss_{_name(order)}", value=mean, unit="nat", repeats=len(losses), spread=(low, high),
                  note=note)  # fmt: skip


def _change(order: str, control: str, of: dict[str, NDArray[np.float64]], base: NDArray[np.float64]) -> Figure:
    found = effect(of[control], of[order])
    share = 100 * found.change / float(base.mean() - of[control].mean())
    note = (
        f"{found.verdict}; {-share:+.1f} % of the gain of {control}; bootstrap over records p = {found.p:.2g}; "
        f"detectable {found.detectable:.3f}; each seed "
        + ", ".join(f"{one:+.3f}" for one in (of[order] - of[control]).mean(axis=1))
    )
    return Figure(name=f"loss_change_{_name(order)}_against_{_name(control)}", value=found.change, unit="nat",
                  repeats=len(of[order]), spread=(found.low, found.high), peer=control, note=note)  # fmt: skip


def _noise(bench: Bench) -> Figure:
    plain = planned(bench.size, bench.parameters, ()).noise_multiplier
    note = (
        f"{bench.plan.noise_multiplier:.3f} against {plain:.3f} at epsilon {EPSILON:g} without phases, where every "
        "record is sampled as often; not part of the ablation, whose orders all have the first"
    )
    return Figure(name="noise_of_a_curriculum", value=bench.plan.noise_multiplier / plain, unit="times", note=note)


def tiny(directory: Path) -> Path:
    """The model of the unit tests."""
    from tests import conftest

    directory.mkdir()
    conftest._build_llama(directory)
    return directory


def main() -> None:
    options = arguments(__doc__ or "")
    report = Report(bench="curriculum", quick=options.quick)
    if not banking.DATA.is_dir():
        raise SystemExit(f"not run: banking77 is not in {banking.DATA}")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        model_dir = tiny(work / "model") if options.quick else media.model(work / "model")
        bench = prepared(model_dir, QUICK if options.quick else FULL)
        report.figures += figures(bench, *measured(bench, work))
    report.print(as_json=options.json)


if __name__ == "__main__":
    main()
