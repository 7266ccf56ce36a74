"""The training benchmark on a GPU: models of 135M, 1B and 8B with random weights, made on the device.

`bench/train.py --device cuda [--model-shape 1b,8b,135m] [--model DIR] [--data DIR] [--budget S] [--only NAME,...]`
comes here. The most telling figures come first, and each is printed to stderr as soon as it is known, so that a run
that is cut off has told what it knew; what the budget left no time for is "not run: time". `--model` gives the
tokenizer for the epochs of real text, without which it is read as bytes; `--data` is where banking77 lies.
"""

from __future__ import annotations

import gc
import sys
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import epochs
import torch
from batches import random_batch, random_record
from epochs import SIDES, banking, encoded, ours
from figures import Figure, age, ratio_figure
from shapes import SHAPES, Built
from sides import Ghost, Hooks, Ours, Plain

from appliance.flows.run.hardware import DEFAULT_TOKENS, GRADIENT_SHARE
from appliance.jobs.job import EngineOptions
from appliance.models.loading import load_tokenizer
from appliance.privacy.sampler import noise_variance
from appliance.train.encode import buckets
from appliance.train.noise import DiscreteGaussian
from appliance.train.optimizer import ExactDPOptimizer
from appliance.train.proofs import reference_gradient
from tests.conftest import _byte_tokenizer
from tests.unit.train.rig import NoNoise, plan

GIB = 2**30
RANK = 8


@dataclass(frozen=True)
class Peak:
    """GiB above the base's weights: what tensors took at most, and what the allocator held for them."""

    allocated: float
    reserved: float

    def __str__(self) -> str:
        return f"{self.allocated:.2f} (held {self.reserved:.2f})"


@dataclass
class Case:
    """One micro-batch on both sides: seconds of neighbouring steps, and peaks."""

    label: str
    flops: float
    tokens: int
    times: list[tuple[float, float]]
    peaks: tuple[Peak, Peak, Peak] | None = None

    @property
    def ratios(self) -> list[float]:
        return [mine / theirs for mine, theirs in self.times]

    @property
    def seconds(self) -> float:
        return median(mine for mine, _ in self.times)


@dataclass
class Bench:
    """What is measured where, and until when."""

    device: str
    shapes: list[str]
    tokenizer: Path | None
    budget: float
    repeats: int = 7
    kept: list[Built] = field(default_factory=list)

    @property
    def gradient_bytes(self) -> int:
        """As `train plan` chooses it for this card."""
        if self.device == "cpu":
            return EngineOptions().gradient_bytes
        return int(torch.cuda.get_device_properties(0).total_memory) // GRADIENT_SHARE

    @property
    def late(self) -> bool:
        """Whether the budget is used up."""
        return age() > self.budget

    def built(self, name: str) -> Built:
        """The model of a shape; only the last one is kept."""
        if not self.kept or self.kept[0].name != name:
            self.kept.clear()
            self.free()
            self.kept.append(Built(name, self.device))
        return self.kept[0]

    def free(self) -> None:
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def seconds(self, work: Callable[[], Any]) -> float:
        self.wait()
        start = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - start

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def alternated(self, first: Callable[[], Any], second: Callable[[], Any]) -> list[tuple[float, float]]:
        """Seconds of both, neighbours in time, after two runs of each that do not count."""
        for _ in range(2):
            first(), second()  # type: ignore[func-returns-value]
        return [(self.seconds(first), self.seconds(second)) for _ in range(self.repeats)]

    @cached_property
    def peak_flops(self) -> float:
        """What the card reaches in one large bfloat16 product, per second."""
        size = 8192 if self.device == "cuda" else 256
        a, b = (torch.randn(size, size, device=self.device, dtype=torch.bfloat16) for _ in range(2))
        for _ in range(3):
            a @ b
        return 10 * 2 * size**3 / self.seconds(lambda: [a @ b for _ in range(10)])


def measured(bench: Bench, side: Any, batch: Any) -> Peak:
    """Of the first two steps of a side: its adapter, buffers and gradients count, the base's weights do not."""
    rows, tokens = len(batch), sum(record.length for record in batch)
    side.drop()
    bench.free()
    before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    side.prepare(rows, tokens)
    side.step(batch)  # our engine records it in CUDA graphs
    side.step(batch)
    bench.wait()
    most = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    allocated, reserved = ((high - low + size_of(side)) / GIB for high, low in zip(most, before, strict=True))
    return Peak(allocated, reserved)


def beside(bench: Bench, name: str, peer: type[Any], targets: str, most: int | None = None, **mine: Any) -> list[Case]:
    """Our engine and a peer on the micro-batches of a shape, the large ones first."""
    built = bench.built(name)
    rows, length = built.shape.batches[0]
    us = Ours(built, "bfloat16", targets, bench.device, rows * length, rows=rows, **mine)
    them, cases = peer(built, "bfloat16", targets, bench.device), []
    for rows, length in built.shape.batches[:most]:
        if bench.late and cases:
            break
        batch = random_batch(rows, length, built.config.vocab_size)
        # As a run that takes no more tokens at once than it does by itself; both sides share one card's memory here.
        graphs = bench.device == "cuda" and rows * length <= DEFAULT_TOKENS["cuda"]
        us.options = us.options.model_copy(update={"cuda_graphs": graphs})
        us.prepare(rows, rows * length)
        us.prove([batch[0].length])
        times = bench.alternated(partial(us.step, batch), partial(them.step, batch))
        supervised = sum(len(record.positions) for record in batch)
        case = Case(f"({rows}, {length})", built.flops(rows, length, supervised, RANK), rows * length, times)
        if bench.device == "cuda" and peer is Plain:
            with_graphs, us.options = us.options, us.options.model_copy(update={"cuda_graphs": False})
            ours, theirs = measured(bench, us, batch), measured(bench, them, batch)
            us.options = with_graphs
            case.peaks = ours, theirs, measured(bench, us, batch) if graphs else ours
        cases.append(case)
        peaks = f", GiB {case.peaks[0]}, PEFT {case.peaks[1]}, graphs {case.peaks[2]}" if case.peaks else ""
        said = f"{case.label} {median(case.ratios):.3f}, {case.tokens / case.seconds:.0f} tokens/s{peaks}"
        print(f"  {name} {peer.__name__} {targets}: {said}", file=sys.stderr, flush=True)
    return cases


def size_of(side: Any) -> int:
    """Bytes of a side's adapter."""
    model = side.adapter.model if isinstance(side, Ours) else side.peft
    named = (parameter for name, parameter in model.named_parameters() if "lora_" in name)
    return sum(parameter.numel() * parameter.element_size() for parameter in named)


def steps(bench: Bench, name: str, targets: str, **mine: Any) -> Iterator[Figure]:
    """Everything that one comparison with plain PEFT tells."""
    kind = ("" if targets == "all-linear" else "_attention") + ("_freeze_a" if mine else "")
    cases = beside(bench, name, Plain, targets, **mine)
    peer = f"peft {version('peft')}"
    yield ratio_figure(
        f"step_time_ratio_plain_bf16{kind}_{name}", {c.label: c.ratios for c in cases}, bar=1.05, peer=peer
    )
    note = ", ".join(f"{c.label} {c.tokens / c.seconds:.0f}" for c in cases)
    fast = max(cases, key=lambda c: c.tokens / c.seconds)
    yield Figure(name=f"tokens_per_s{kind}_{name}", value=fast.tokens / fast.seconds, unit="tokens/s", better="higher",
                 repeats=bench.repeats, note=note)  # fmt: skip
    shares = {c.label: c.flops / c.seconds / bench.peak_flops for c in cases}
    note = ", ".join(f"{label} {share:.3f}" for label, share in shares.items())
    note += f"; of {bench.peak_flops / 1e12:.0f} TFLOP/s in one bfloat16 product; padding would count, there is none"
    yield Figure(name=f"bf16_share{kind}_{name}", value=max(shares.values()), unit="share", better="higher",
                 repeats=bench.repeats, note=note)  # fmt: skip
    peaks = {c.label: [c.peaks[0].reserved / c.peaks[1].reserved] for c in cases if c.peaks}
    name, bar = f"peak_memory_ratio_plain{kind}_{name}", 1.0 if mine else 1.1
    if not peaks:
        yield Figure(name=name, value=None, unit="ratio", bar=bar, note="not run: only on a GPU")
        return
    note = "what the allocator held above the base's weights, without CUDA graphs; GiB ours, PEFT, ours with graphs: "
    note += ", ".join(f"{c.label} {c.peaks[0]}, {c.peaks[1]}, {c.peaks[2]}" for c in cases if c.peaks)
    yield ratio_figure(name, peaks, bar=bar, peer=peer, note=note)


def opacus(bench: Bench, name: str, peer: type[Any], bar: float | None) -> Iterator[Figure]:
    cases = beside(bench, name, peer, "all-linear", most=2)
    title = f"step_time_ratio_opacus_{peer.__name__.lower()}_{name}"
    yield ratio_figure(
        title, {c.label: c.ratios for c in cases}, bar=bar, peer=f"opacus {version('opacus')}", note="bfloat16"
    )


def proof(bench: Bench, name: str) -> Iterator[Figure]:
    """The proofs of the start of a run of records up to 512 tokens, with the settings of a run."""
    side = Ours(bench.built(name), "bfloat16", "all-linear", bench.device, DEFAULT_TOKENS[bench.device], freeze_a=True,
                gradient_bytes=bench.gradient_bytes)  # fmt: skip
    lengths = buckets(512 if bench.device == "cuda" else 64)
    taken = bench.seconds(lambda: side.prove(lengths))
    counts = side.engine.counts.proved
    note = f"{len(lengths)} lengths, A frozen; rows proved at the shortest and longest: "
    note += ", ".join(str(counts.get(side.engine.pad_length(length))) for length in (lengths[0], lengths[-1]))
    yield Figure(name=f"proof_s_{name}", value=taken, unit="s", note=note)


def noise(bench: Bench, name: str) -> Iterator[Figure]:
    """What noise adds to a logical step of 64 records of 128 tokens at ten million parameters."""
    built, rows = bench.built(name), 64 if bench.device == "cuda" else 8
    rank = max(1, round(1e7 / sum(out + into for out, into in built.linear))) if bench.device == "cuda" else 2
    side = Ours(built, "bfloat16", "all-linear", bench.device, rows * 128, r=rank, rows=rows)
    batch = random_batch(rows, 128, built.config.vocab_size)
    side.prove([batch[0].length])
    made = plan()

    def step(source: Any) -> Callable[[], None]:
        optimizer = ExactDPOptimizer(side.adapter, side.engine.sum, source, made, 1e-6)

        def run() -> None:
            optimizer.begin_noise()
            side.step(batch)
            optimizer.apply(optimizer.release())

        return run

    variance = noise_variance(1.0, 1.0, side.adapter.parameters)
    drawn = DiscreteGaussian(variance, ahead=bench.device == "cuda")
    times = bench.alternated(step(drawn), step(NoNoise()))
    shares = [1 - without / whole for whole, without in times]
    note = f"P = {side.adapter.parameters}, {rows} records of 128 tokens, bfloat16; seconds with and without: "
    note += ", ".join(f"{median(column):.4f}" for column in zip(*times, strict=True))
    yield Figure(name=f"noise_share_of_step_{name}", value=median(shares), unit="share", bar=0.05, repeats=len(shares),
                 spread=(min(shares), max(shares)), note=note)  # fmt: skip


def norms(bench: Bench, name: str) -> Iterator[Figure]:
    built = bench.built(name)
    side = Ours(built, "float32", "all-linear", bench.device, 1024, rows=2)
    errors = []
    for length in (32, 128, 512):
        batch = [random_record(length, built.config.vocab_size, seed) for seed in range(2)]
        found = [float(row.double().norm()) for row in side.engine.gradients(batch)]
        for norm, record in zip(found, batch, strict=True):
            plain = float(reference_gradient(side.adapter, record).double().norm())
            errors.append(abs(norm - plain) / plain)
    yield Figure(
        name=f"per_sample_norm_rel_error_{name}", value=max(errors), unit="relative", bar=1e-5, repeats=len(errors),
        spread=(min(errors), max(errors)), peer="plain autograd", note="float32",
    )  # fmt: skip


def epoch(bench: Bench, name: str, side: str, bar: float) -> Iterator[Figure]:
    built = bench.built(name)
    tokenizer = load_tokenizer(bench.tokenizer) if bench.tokenizer else _byte_tokenizer()
    cuda = bench.device == "cuda"
    tokens = {"1b": 16384, "8b": 8192}.get(name, 32768) if cuda else 512
    records = encoded(banking(2048 if cuda else 16), tokenizer, 512)
    given = (built, "bfloat16", bench.device, records, tokens)
    us, them = ours(*given), SIDES[side](*given)
    us(), them()
    times = [(bench.seconds(us), bench.seconds(them)) for _ in range(3 if cuda else 1)]
    package = "opacus" if side.startswith("opacus") else "transformers"
    note = f"{len(records)} records of banking77, bfloat16, at most {tokens} padded tokens at once; ours "
    note += f"{median(mine for mine, _ in times):.2f} s" + ("" if bench.tokenizer else "; text as bytes")
    cases = {"banking77": [theirs / mine for mine, theirs in times]}
    yield ratio_figure(f"epoch_speedup_vs_{side}_{name}", cases, bar=bar, better="higher",
                peer=f"{package} {version(package)}", note=note)  # fmt: skip


def jobs(bench: Bench) -> Iterator[tuple[str, Callable[[], Iterator[Figure]]]]:
    """Every job with a title, the most telling first; shapes in the order in which they were asked for."""
    names = bench.shapes
    yield from ((f"steps_{n}", partial(steps, bench, n, "all-linear")) for n in names)
    yield from ((f"opacus_ghost_{n}", partial(opacus, bench, n, Ghost, 0.6)) for n in names)
    for n in names:
        yield f"noise_{n}", partial(noise, bench, n)
        yield f"proof_{n}", partial(proof, bench, n)
    yield from ((f"attention_{n}", partial(steps, bench, n, "attention")) for n in names)
    yield from ((f"freeze_a_{n}", partial(steps, bench, n, "all-linear", freeze_a=True)) for n in names)
    small = [n for n in names if n != "8b"]
    yield from ((f"norms_{n}", partial(norms, bench, n)) for n in small[:1])
    for side, bar in (("hf_group_by_length", 1.0), ("hf_trainer", 1.5), ("opacus_ghost", 3.0), ("opacus_hooks", 2.0)):
        yield from ((f"epoch_{side}_{n}", partial(epoch, bench, n, side, bar)) for n in small)
    yield from ((f"opacus_hooks_{n}", partial(opacus, bench, n, Hooks, None)) for n in names)


def said(bench: Bench, title: str, job: Callable[[], Iterator[Figure]]) -> Iterator[Figure]:
    """The figures of one job; whatever stops it is said."""
    if bench.late:
        yield Figure(name=title, value=None, unit="", note="not run: time")
        return
    try:
        with warnings.catch_warnings(), redirect_stdout(sys.stderr):  # the Trainer prints
            warnings.simplefilter("ignore")
            yield from job()
    except Exception as error:  # noqa: BLE001 - whatever a peer raises is its reason
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        yield Figure(name=title, value=None, unit="", note=f"not run: {reason}")
    bench.free()


def figures(options: Namespace) -> list[Figure]:
    """Every figure, each printed as soon as it is known."""
    names = (options.model_shape or ("1b,8b,135m" if options.device == "cuda" else "tiny")).split(",")
    if unknown := [name for name in names if name not in SHAPES]:
        raise SystemExit(f"no shape {unknown[0]}: one of {', '.join(SHAPES)}")
    tokenizer = Path(options.model) if options.model else None
    epochs.BANKING = Path(options.data) / "train.csv" if options.data else epochs.BANKING
    bench = Bench(options.device, names, tokenizer, float(options.budget or 1e9), 3 if options.quick else 5)
    wanted = options.only.split(",") if options.only else None
    found = []
    for title, job in jobs(bench):
        if wanted is not None and not any(title.startswith(name) for name in wanted):
            continue
        for figure in said(bench, title, job):
            figure.bar = figure.bar if options.device == "cuda" else None  # elsewhere the ratios say nothing
            found.append(figure)
            print(f"[{age():5.1f} s] {figure.line()}", file=sys.stderr, flush=True)
    return found
