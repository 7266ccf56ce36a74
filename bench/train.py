"""What DP costs beside plain LoRA, and what the others take: step time, memory, an epoch of real text, noise.

`python bench/train.py [--quick] [--json] [--device] [--only NAME,...] [--targets T] [--shape N] [--tokens N]`: SmolLM2,
or with --quick a tiny model on which no bar of time or memory is judged. Both sides of a ratio alternate in one process
with the same threads; what is quoted is the median of the ratios of neighbouring runs, of the worst case. With
`--device cuda`, or with `--model-shape`, the figures are those of `gpu.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from fractions import Fraction
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))
# As a worker has them; torch and transformers read them when they are loaded.
os.environ |= {"PYTORCH_ALLOC_CONF": "expandable_segments:True", "HF_HUB_OFFLINE": "1"}

import gpu
import media
import neighbour
import torch
from batches import batch_of, random_record
from epochs import SIDES, banking, encoded, ours, reviews
from figures import ROOT, Figure, Report, arguments, ratio_figure
from peaks import Case, peak
from sides import Ghost, Hooks, Ours, Plain, random_b

from appliance.models.loading import load_tokenizer
from appliance.privacy.accounting import Mechanism as Steps
from appliance.privacy.accounting import calibrate, epsilon_rdp
from appliance.privacy.sampler import noise_variance
from appliance.train.noise import DiscreteGaussian
from appliance.train.proofs import reference_gradient
from tests import conftest

TARGETS = ("all-linear", "attention")
SETTINGS = ((8.0, Fraction(1, 100), 300), (3.0, Fraction(1, 100), 300), (3.0, Fraction(1, 20), 400))


class Setting:
    """Sizes: SmolLM2 and the bars' shapes, or with --quick a tiny model."""

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self.quick, self.device, self.work = options.quick, options.device, work
        self.targets = (options.targets,) if options.targets else TARGETS
        shapes = ((4, 64), (8, 16), (1, 256)) if self.quick else ((8, 128), (32, 32), (2, 1024))
        self.shapes = (shapes[int(options.shape)],) if options.shape else shapes
        self.repeats = 5
        self.tokens = int(options.tokens or (256 if self.quick else 4096))

    @cached_property
    def directory(self) -> Path:
        target = self.work / "model"
        if self.quick:
            conftest._build_llama(target)
            return target
        return media.model(target)

    def bar(self, bar: float) -> float | None:
        return None if self.quick else bar


def alternated(first: Callable[[], Any], second: Callable[[], Any], repeats: int) -> list[tuple[float, float]]:
    """Seconds of both, neighbours in time, after one run of each that does not count."""
    first(), second()  # type: ignore[func-returns-value]
    return [(seconds(first), seconds(second)) for _ in range(repeats)]


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def step_time(setting: Setting, name: str, dtype: str, peer: type[Any], peer_name: str, bar: float | None) -> Figure:
    cases: dict[str, list[float]] = {}
    against_plain = peer is Plain
    for targets in setting.targets if against_plain else TARGETS[:1]:
        tokens = max(rows * length for rows, length in setting.shapes)
        us = Ours(setting.directory, dtype, targets, setting.device, tokens)
        them = peer(setting.directory, dtype, targets, setting.device)
        for rows, length in setting.shapes if against_plain else setting.shapes[:1]:
            batch = batch_of(rows, length, setting.directory)
            times = alternated(partial(us.step, batch), partial(them.step, batch), setting.repeats)
            cases[f"{targets} ({rows}, {length})"] = [a / b for a, b in times]
            print(f"{name} {targets} ({rows}, {length}): {times}", file=sys.stderr, flush=True)
    return ratio_figure(name, cases, bar=bar and setting.bar(bar), peer=peer_name)


def peak_memory(setting: Setting, name: str, freeze_a: bool, bar: float) -> Figure:
    if setting.quick:  # what a tiny model's step adds is less than what a process holds by chance
        return Figure(name=name, value=None, unit="ratio", bar=bar, note="not run: only without --quick")
    cases: dict[str, list[float]] = {}
    for dtype in ("float32", "bfloat16"):
        for targets in setting.targets:
            for rows, length in setting.shapes:
                shape = {"dtype": dtype, "targets": targets, "rows": rows, "length": length}
                case = partial(Case, directory=str(setting.directory), **shape)  # type: ignore[arg-type]
                us, them = peak(case(side="ours", freeze_a=freeze_a)), peak(case(side="plain"))
                model = them["model"]  # of both: ours has its gradient buffer in it already
                ratio = (us["peak"] - model) / (them["peak"] - model)
                cases[f"{dtype} {targets} ({rows}, {length})"] = [ratio]
    note = "VmHWM of two steps above what the plain side holds with its model"
    return ratio_figure(name, cases, bar=bar, peer=f"peft {version('peft')}", note=note)


def epoch(setting: Setting, side: str, bar: float) -> Figure:
    tokenizer = load_tokenizer(setting.directory)
    texts = {"banking77": banking(32 if setting.quick else 96)}
    if not setting.quick:
        texts["drug reviews"] = reviews(48)
    cases: dict[str, list[float]] = {}
    for name, pairs in texts.items():
        records = encoded(pairs, tokenizer, 512)
        given = (setting.directory, "bfloat16", setting.device, records, setting.tokens)
        us, them = ours(*given), SIDES[side](*given)
        cases[f"{name} ({len(records)} records)"] = [b / a for a, b in alternated(us, them, 1 if setting.quick else 5)]
    package = "opacus" if side.startswith("opacus") else "transformers"
    return ratio_figure(
        f"epoch_speedup_vs_{side}",
        cases,
        bar=setting.bar(bar),
        better="higher",
        peer=f"{package} {version(package)}",
        note=f"bfloat16, at most {setting.tokens} padded tokens at once on every side",
    )


def norm_error(setting: Setting) -> Figure:
    side = Ours(setting.directory, "float32", "all-linear", setting.device, 1024)
    vocabulary = side.adapter.model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    errors = []
    for length in (32, 64) if setting.quick else (32, 128, 512):
        batch = [random_record(length, vocabulary, seed) for seed in range(2)]
        found = [float(row.double().norm()) for row in side.engine.gradients(batch)]
        for norm, record in zip(found, batch, strict=True):
            plain = float(reference_gradient(side.adapter, record).double().norm())
            errors.append(abs(norm - plain) / plain)
    return Figure(name="per_sample_norm_rel_error", value=max(errors), unit="relative", bar=1e-5, repeats=len(errors),
                  spread=(min(errors), max(errors)), peer="plain autograd", note="float32")  # fmt: skip


def noise_saving(setting: Setting) -> Figure:
    delta, savings = 1e-5, []
    for epsilon, rate, steps in SETTINGS:
        low = ours_sigma = calibrate(rate, steps, epsilon, delta)
        high = 1.5 * low
        while high - low > 1e-4 * low:
            middle = (low + high) / 2
            low, high = (middle, high) if epsilon_rdp([Steps(middle, rate, steps)], delta) > epsilon else (low, middle)
        savings.append(1 - ours_sigma / high)
    note = ", ".join(
        f"epsilon {e:g} q {float(q):g} T {t}: {s:.2%}" for (e, q, t), s in zip(SETTINGS, savings, strict=True)
    )
    return Figure(name="noise_multiplier_saving_vs_rdp", value=min(savings), unit="share", bar=0.055, better="higher",
                  peer=f"dp-accounting {version('dp-accounting')} RDP", note=f"delta 1e-5; {note}")  # fmt: skip


def noise_share(setting: Setting) -> Figure:
    """Noise for ten million parameters, against a logical step of 64 records of 128 tokens at rank 33."""
    rows, length = setting.shapes[0]
    rank = 4 if setting.quick else 33
    side = Ours(setting.directory, "bfloat16", "all-linear", setting.device, rows * length, r=rank)
    random_b(site.b for site in side.adapter.sites)
    source, batch = DiscreteGaussian(noise_variance(1.0, 1.0, 10**7)), batch_of(rows, length, setting.directory)
    times = alternated(partial(source.draw, 10**7), partial(side.step, batch), setting.repeats)
    shares = [noise / (noise + 8 * step) for noise, step in times]
    note = f"8 micro-batches of ({rows}, {length}), P of the step {side.adapter.parameters}, bfloat16"
    return Figure(name="noise_share_of_step", value=median(shares), unit="share", bar=setting.bar(0.05),
                  repeats=len(shares), spread=(min(shares), max(shares)), note=note)  # fmt: skip


def nf4_7b(setting: Setting) -> Figure:
    name, unit, bar = "nf4_7b_peak_gib", "GiB", 8e9 / 2**30
    if setting.quick:
        return Figure(name=name, value=None, unit=unit, bar=bar, note="not run: only without --quick")
    found = peak(Case(side="nf4_7b"))
    note = f"resident with the model {found['model']:.2f}; B = 1, T = 1024, r = 8, all linear, checkpointing"
    return Figure(name=name, value=found["peak"], unit=unit, bar=bar, note=note)


def memory_estimate(setting: Setting) -> Figure:
    """The figure of bench/memory.py, a script of its own: it trains in a child process for each configuration."""
    name, script = "memory_estimate_rel_error", ROOT / "bench" / "memory.py"
    if not script.exists() or setting.device != "cpu":
        reason = "no bench/memory.py" if setting.device == "cpu" else "resident memory says nothing of a GPU's"
        return Figure(name=name, value=None, unit="ratio", bar=0.05, note=f"not run: {reason}")
    command = [sys.executable, str(script), "--json", *(["--quick"] if setting.quick else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])["figures"]
    return next(Figure(**figure) for figure in found if figure["name"] == name)


def beside_a_neighbour(setting: Setting) -> Figure:
    if setting.device != "cpu":
        return Figure(name="cpu_time_beside_a_neighbour", value=None, unit="ratio", note="not run: only on the CPU")
    return neighbour.figure(setting.directory, setting.bar(1.3), 1 if setting.quick else 3)


FIGURES: dict[str, Callable[..., Figure]] = {
    "step_time_ratio_plain_fp32": partial(step_time, dtype="float32", peer=Plain, peer_name="peft", bar=1.05),
    "step_time_ratio_plain_bf16": partial(step_time, dtype="bfloat16", peer=Plain, peer_name="peft", bar=1.05),
    "step_time_ratio_opacus_hooks": partial(step_time, dtype="float32", peer=Hooks, peer_name="opacus", bar=None),
    "step_time_ratio_opacus_ghost": partial(step_time, dtype="float32", peer=Ghost, peer_name="opacus", bar=None),
    "peak_memory_ratio_plain": partial(peak_memory, freeze_a=False, bar=1.10),
    "peak_memory_ratio_plain_freeze_a": partial(peak_memory, freeze_a=True, bar=1.00),
    "epoch_speedup_vs_hf_trainer": partial(epoch, side="hf_trainer", bar=1.5),
    "epoch_speedup_vs_hf_group_by_length": partial(epoch, side="hf_group_by_length", bar=1.0),
    "epoch_speedup_vs_opacus_hooks": partial(epoch, side="opacus_hooks", bar=2.0),
    "epoch_speedup_vs_opacus_ghost": partial(epoch, side="opacus_ghost", bar=3.0),
    "per_sample_norm_rel_error": norm_error,
    "noise_multiplier_saving_vs_rdp": noise_saving,
    "noise_share_of_step": noise_share,
    "nf4_7b_peak_gib": nf4_7b,
    "memory_estimate_rel_error": memory_estimate,
    "cpu_time_beside_a_neighbour": beside_a_neighbour,
}


def measured(name: str, setting: Setting) -> Figure:
    """One figure; a peer that cannot run is said, with its reason, never left out."""
    extra = {"name": name} if name.startswith(("step_time", "peak_memory")) else {}
    try:
        with warnings.catch_warnings(), redirect_stdout(sys.stderr):  # the Trainer prints
            warnings.simplefilter("ignore")
            return FIGURES[name](setting, **extra)
    except SystemExit as missing:
        return Figure(name=name, value=None, unit="", note=str(missing))
    except Exception as error:  # noqa: BLE001 - whatever a peer raises is its reason
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        return Figure(name=name, value=None, unit="", note=f"not run: {reason}")


def main() -> None:
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # the tests' own modules, which are imported above, ask for one
    options = arguments(
        __doc__ or "",
        only="figures by name, with commas",
        targets="all-linear or attention alone",
        shape="0, 1 or 2: one shape alone",
        tokens="padded tokens that a side computes at once in an epoch",
        model_shape="135m, 1b, 8b or tiny, with commas: random weights, made on the device",
        model="a model directory whose tokenizer reads the epochs' text; only for --model-shape",
        data="directory with train.csv of banking77; only for --model-shape",
        budget="seconds after which nothing new is begun; only for --model-shape",
    )
    wanted = options.only.split(",") if options.only else list(FIGURES)
    report = Report(bench="train", quick=options.quick)
    if options.device != "cpu" or options.model_shape:
        report.figures = gpu.figures(options)
        return report.print(as_json=options.json)
    with tempfile.TemporaryDirectory() as work:
        setting = Setting(options, Path(work))
        report.figures = [measured(name, setting) for name in wanted]
    report.print(as_json=options.json)


if __name__ == "__main__":
    main()
