"""Does the mark survive, is it ever claimed wrongly, and what does it cost? SmolLM2 with a DP-trained adapter.

The adapter is trained here, on public reviews, by the appliance's own DP-SGD with its own sampler and noise; --quick
takes fewer steps and records. With --base and --adapter it is one that the appliance has trained already: the model and
the unmarked adapter of a run in some home. Every attack is on the merged model, and its score stands beside the closed
form's prediction. NF4 and INT8 are those of bitsandbytes; INT4 in groups of 128 and pruning are plain rounding.
"""

from __future__ import annotations

import copy
import functools
import logging
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import media
import torch
from figures import Figure, Report, arguments
from torch import Tensor

from appliance.evaluate import public_text
from appliance.jobs.job import EngineOptions, IsolationSpec, SealedObject
from appliance.jobs.lora import LoraSpec
from appliance.jobs.plan import PrivacyPlan, UnitOfPrivacy
from appliance.jobs.record import Record
from appliance.jobs.train import TrainJob, TrainSpec
from appliance.models.loading import load
from appliance.privacy.accounting import Mechanism, epsilon_pld
from appliance.train.running import train
from appliance.watermark import detection
from appliance.watermark.activations import top_directions
from appliance.watermark.adapters import AdapterSuspect, Factors, read_adapter
from appliance.watermark.detection import Suspect, project, score
from appliance.watermark.envelope import ATTACKS
from appliance.watermark.keys import module_key
from appliance.watermark.reference import Reference
from appliance.watermark.release import Prepared, embed, prepare
from tests.unit.train.rig import MemoryJournal, MemorySnapshots

PROMPT = "Write a patient's review of {drugName}, taken for {condition}."
BARS = {"none": 100.0, "bf16": 100.0, "int8": 100.0, "nf4": 33.0, "int4_g128": 20.0, "prune30": 20.0, "prune50": 13.4}
TAILS = (1.5, 2.0, 2.5, 3.0, 3.5)
OTHER_KEYS = 1000
FULL = {"units": 600, "batch": 100, "steps": 4, "max_tokens": 96, "keys": 10_000, "tokens": 20_480}
QUICK = {"units": 150, "batch": 24, "steps": 2, "max_tokens": 64, "keys": 200, "tokens": 1_024}


def reviews(count: int) -> list[Record]:
    pairs = [(PROMPT.format(**row), row["review"]) for row in media.reviews("Train", count)]
    return [
        Record(unit=str(i), kind="completion", parts=(("prompt", prompt), ("completion", review)))
        for i, (prompt, review) in enumerate(pairs)
    ]


def dp_trained(directory: Path, size: dict[str, int]) -> tuple[Factors, float, float]:
    """The factors of an adapter trained with secret sampling and noise, its epsilon, and the seconds it took."""
    plan = PrivacyPlan(
        unit=UnitOfPrivacy(), declared_units=size["units"], expected_batch_size=size["batch"], steps=size["steps"],
        spare_steps=1, max_grad_norm=1.0, clipping="normalised", noise_multiplier=0.8, epsilon=8.0, delta=1e-5,
        sampler_delta=0.0,
    )  # fmt: skip
    job = TrainJob(
        schema="appliance.job/1", run_id="bench", plan=plan, lora=LoraSpec(r=8, alpha=16.0),
        train=TrainSpec(lr=2e-3, max_tokens=size["max_tokens"]),
        engine=EngineOptions(dtype="bfloat16", physical_tokens=1024),
        isolation=IsolationSpec(), model_dir="m", model_sha256="0" * 64, agent_socket="s",
        dataset=SealedObject(dataset_id="d", path="p", blake3="1" * 64, wrapped_key="w", key_epoch=1),
    )  # fmt: skip
    model, tokenizer = load(directory, torch.bfloat16)
    began = time.monotonic()
    made = train(job, model, tokenizer, reviews(size["units"]), MemoryJournal(), MemorySnapshots(), lambda public: None)
    seconds = time.monotonic() - began
    epsilon = epsilon_pld([Mechanism(plan.noise_multiplier, plan.sample_rate, made.attempts)], plan.delta)
    prefix = "base_model.model."
    a = {n.removeprefix(prefix).removesuffix(".lora_A.weight"): t for n, t in made.state.items() if "lora_A" in n}
    b = {n.removeprefix(prefix).removesuffix(".lora_B.weight"): t for n, t in made.state.items() if "lora_B" in n}
    assert made.private
    return Factors(tuple(sorted(a)), a, b, 2.0, made.config), epsilon, seconds


def delta(factors: Factors, name: str) -> Tensor:
    return factors.scale * factors.b[name].float() @ factors.a[name].float()


class Attacked:
    """A merged model after an attack on every adapted weight."""

    def __init__(self, model: Any, factors: Factors | None, attack: Callable[[Tensor], Tensor]) -> None:
        self.model, self.factors, self.attack = model, factors, attack

    def products(self, reference: Reference) -> tuple[Tensor, Tensor]:
        base = self.model.get_submodule(reference.module).weight
        merged = base if self.factors is None else base + delta(self.factors, reference.module)
        change = self.attack(merged) - base
        return (change @ reference.v).double(), (change.T @ reference.u).double()


def nf4(weight: Tensor) -> Tensor:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    return dequantize_4bit(*quantize_4bit(weight.contiguous(), blocksize=64, quant_type="nf4")).float()


def int8(weight: Tensor) -> Tensor:
    from bitsandbytes.functional import int8_vectorwise_dequant, int8_vectorwise_quant

    codes, scales, _ = int8_vectorwise_quant(weight.to(torch.float16))
    return int8_vectorwise_dequant(codes, scales).float()


def merged(model: Any, factors: Factors) -> Any:
    made = copy.deepcopy(model)
    for name in factors.names:
        made.get_submodule(name).weight.data += delta(factors, name)
    return made


def compared(plain: Any, marked: Any, tokens: list[int], window: int = 256) -> tuple[Tensor, Tensor, Tensor]:
    """For every next-token prediction: losses [n, 2], hits [n, 2] (plain, marked) and KL(plain || marked) [n]."""
    losses, hits, kl = [], [], []
    with torch.inference_mode():
        for start in range(0, len(tokens) - window + 1, window):
            ids = torch.tensor([tokens[start : start + window]])
            p, q = (model(input_ids=ids).logits[0, :-1].float().log_softmax(-1) for model in (plain, marked))
            losses.append(torch.stack([-log.gather(1, ids[0, 1:, None])[:, 0] for log in (p, q)], 1))
            hits.append(torch.stack([(log.argmax(-1) == ids[0, 1:]).float() for log in (p, q)], 1))
            kl.append((p.exp() * (p - q)).sum(-1))
    return torch.cat(losses), torch.cat(hits), torch.cat(kl)


def interval(differences: Tensor) -> tuple[float, float, float]:
    mean = float(differences.mean())
    half = 1.96 * float(differences.std()) / math.sqrt(len(differences))
    return mean, mean - half, mean + half


def key_of(master: bytes) -> Callable[[str], bytes]:
    return partial(module_key, master, "0" * 64, "owner/bench")


def score_figures(report: Report, model: Any, found: Factors, plain: Factors, ready: Prepared, master: bytes) -> None:
    def scored(suspect: Suspect) -> float:
        return score(project(suspect, ready.references), key_of(master))

    attacks = {**ATTACKS, "nf4": nf4, "int8": int8}
    with torch.no_grad():
        for name, attack in attacks.items():
            reached, predicted = scored(Attacked(model, found, attack)), ready.predicted[name]
            note = f"predicted {predicted:.1f}, ratio {reached / predicted:.2f} (bar 0.85)"
            report.figures.append(
                Figure(name=f"z_{name}", value=reached, unit="z", bar=BARS[name], better="higher", note=note)
            )
            report.figures.append(Figure(name=f"z_predicted_{name}", value=predicted, unit="z"))
            unmarked = scored(Attacked(model, plain, attack))
            report.figures.append(Figure(name=f"z_unmarked_{name}", value=abs(unmarked), unit="z", bar=7.0))
        m = torch.randn(8, 8, dtype=torch.float64)
        inverse = torch.linalg.inv(m)
        variants = {
            "adapter": lambda a, b: (a, b),
            "refactor": lambda a, b: (inverse @ a.double(), b.double() @ m),
            "scaled03": lambda a, b: (a, 0.3 * b),
            "negated": lambda a, b: (a, -b),
            "rank4": rank4,
        }
        for name, change in variants.items():
            pairs = {n: change(found.a[n], found.b[n]) for n in found.names}
            other = Factors(
                found.names, {n: p[0] for n, p in pairs.items()}, {n: p[1] for n, p in pairs.items()}, found.scale, {}
            )
            value = abs(scored(AdapterSuspect(other)))
            report.figures.append(
                Figure(name=f"z_{name}", value=value, unit="z", bar=100.0, better="higher", note="adapter")
            )


def rank4(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    left, right = torch.linalg.qr(b.double()), torch.linalg.qr(a.double().T)
    u, s, vt = torch.linalg.svd(left.R @ right.R.T)
    return vt[:4] @ right.Q.T, (left.Q @ u[:, :4]) * s[:4]


def false_positive_figures(
    report: Report, model: Any, found: Factors, plain: Factors, ready: Prepared, keys: int
) -> None:
    """Foreign keys, each on five models without a mark; the first 1000 also on the marked adapter and model.

    On every tenth layer: the bound holds for any choice of layers that does not look at the key.
    """
    merged_ = [Attacked(model, plain, attack) for attack in (ATTACKS["bf16"], nf4, int8, ATTACKS["prune30"])]
    layers = ready.references[::10]
    with torch.no_grad():
        unmarked = [project(suspect, layers) for suspect in (Attacked(model, None, nf4), *merged_)]
        marked = [project(AdapterSuspect(found), layers), project(Attacked(model, found, nf4), layers)]
    detection.signs = functools.lru_cache(len(layers))(detection.signs)  # a key's signs are the same for every suspect
    scores = torch.zeros(keys, len(unmarked), dtype=torch.float64)
    others = 0.0
    for i in range(keys):
        key = key_of(os.urandom(32))
        scores[i] = torch.tensor([abs(score(residual, key)) for residual in unmarked])
        if i < OTHER_KEYS:
            others = max(others, *(abs(score(residual, key)) for residual in marked))
    note = f"{len(unmarked)} unmarked models, {len(layers)} layers"
    worst = Figure(name="false_positive_max_z", value=float(scores.max()), unit="z", bar=7.0, repeats=keys, note=note)
    shares = {t: max((scores >= t).double().mean(0).tolist()) / (2 * math.exp(-t * t / 2)) for t in TAILS}
    note = "largest of " + ", ".join(f"{share:.2f} at {t}" for t, share in shares.items()) + "; worst model each"
    tail = Figure(name="tail_over_bound", value=max(shares.values()), unit="ratio", bar=1.0, repeats=keys, note=note)
    note = "on the marked adapter and the marked model after NF4"
    other = Figure(name="other_keys_max_z", value=others, unit="z", bar=7.0, repeats=min(keys, OTHER_KEYS), note=note)
    report.figures += [worst, tail, other]


def utility_figures(report: Report, model: Any, found: Factors, plain: Factors, tokens: list[int]) -> None:
    losses, hits, kl = compared(merged(model, plain), merged(model, found), tokens)
    n, before, after = len(losses), *losses.mean(0).tolist()
    mean, low, high = (100 * value / before for value in interval(losses[:, 1] - losses[:, 0]))
    note = f"held-out public text, {before:.4f} to {after:.4f} nat"
    report.figures.append(
        Figure(name="loss_change_percent", value=abs(mean), unit="%", bar=0.1, spread=(low, high), repeats=n, note=note)
    )
    _, low, high = (100 * value for value in interval(hits[:, 1] - hits[:, 0]))
    worst = max(abs(low), abs(high))
    report.figures.append(
        Figure(name="accuracy_change_hi_pp", value=worst, unit="pp", bar=0.1, spread=(low, high), repeats=n)
    )
    report.figures.append(Figure(name="kl", value=float(kl.mean()), unit="nat", bar=1e-3, repeats=n))


def main() -> None:
    options = arguments(
        __doc__ or "", base="directory of an imported base model", adapter="unmarked adapter of a run on it"
    )
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    size = QUICK if options.quick else FULL
    report = Report(bench="watermark", quick=options.quick)
    trained_s = None
    if options.adapter:
        plain, note = read_adapter(Path(options.adapter)), "DP-trained by a run of the appliance"
        model, tokenizer = load(Path(options.base), torch.float32)
    else:
        with tempfile.TemporaryDirectory() as directory:
            model_dir = media.model(Path(directory) / "model")
            plain, epsilon, trained_s = dp_trained(model_dir, size)
            model, tokenizer = load(model_dir, torch.float32)
        note = f"DP-trained, {size['steps']} steps of about {size['batch']} reviews, epsilon {epsilon:.2f}"
    first, second = (tokenizer(half)["input_ids"] for half in public_text.halves())
    began = time.monotonic()
    directions = top_directions(model, plain.names, first)
    ready = prepare(plain, lambda name: model.get_submodule(name).weight, directions)
    master = os.urandom(32)
    made = embed(ready, key_of(master), plain.scale)
    embed_s = time.monotonic() - began
    found = Factors(plain.names, made.a, made.b, plain.scale, plain.config)
    ratio = math.sqrt(
        sum(float(r.s.square().sum()) for r in ready.references)
        / sum(float(model.get_submodule(n).weight.square().sum()) for n in plain.names)
    )
    note += f", |dW|/|W| {100 * ratio:.2f} %"
    report.figures.append(Figure(name="strength", value=ready.rho, unit="rho", bar=0.2, note=note))
    if trained_s:
        report.figures.append(Figure(name="embed_share_of_training", value=embed_s / trained_s, unit="ratio"))
    score_figures(report, model, found, plain, ready, master)
    false_positive_figures(report, model, found, plain, ready, size["keys"])
    utility_figures(report, model, found, plain, second[: size["tokens"]])
    report.print(as_json=options.json)


if __name__ == "__main__":
    main()
