"""Banking77 with SmolLM2, only epsilon set: what DP-SGD with the product's defaults keeps of plain LoRA's gain.

A record is a customer's question and the name of its intent. The DP side is `train` with its own sampler and noise and
the settings that `train plan` would choose. The plain side has the same gradients, batches and steps but no clip and
no noise, and the best of several learning rates of its own. Both adapters are loaded with stock PEFT and judged on
the test split, on the training loss (mean cross-entropy over a record's own label and end-of-turn tokens).
"""

from __future__ import annotations

import csv
import io
import math
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import media
import numpy as np
import torch
from figures import ROOT, Figure
from safetensors.torch import save_file
from torch import Tensor

from appliance.flows.run.hardware import GRADIENT_SHARE
from appliance.flows.run.plan import PlanRequest, settings
from appliance.jobs.job import EngineOptions, IsolationSpec, SealedObject
from appliance.jobs.lora import LoraSpec
from appliance.jobs.plan import PrivacyPlan, UnitOfPrivacy
from appliance.jobs.record import Record
from appliance.jobs.train import TrainJob, TrainSpec
from appliance.models.loading import inspect, load, load_tokenizer
from appliance.privacy.plan import make_plan
from appliance.train.encode import Encoded, Encoder
from appliance.train.mechanism import assemble
from appliance.train.running import train
from appliance.train.sampler import PoissonSampler
from appliance.train.trained import Trained, collect
from tests.unit.train.rig import MemoryJournal, MemorySnapshots

DATA = ROOT.parent / "shared" / "data" / "banking77"
STUDIED = {"train": 1200, "test": 150}
"""Records on which the defaults were chosen (docs/utility.md); they judge nothing."""
BARS = {8: 0.70, 3: 0.60}
PLAIN_RATES = (5e-3, 1e-2, 2e-2)
ENGINE = EngineOptions(dtype="bfloat16", physical_tokens=2048)
_SCORED_TOKENS = 1 << 15  # of prompts and labels that are scored at once
_LOGITS = 1 << 27


@dataclass(frozen=True)
class Size:
    """How many training records (declared units) and test records, how many of those are ranked, and private runs."""

    units: int
    held_out: int
    ranked: int
    runs: int
    plain_rates: tuple[float, ...] = PLAIN_RATES


FULL = Size(units=1200, held_out=308, ranked=77, runs=2)
QUICK = Size(units=32, held_out=16, ranked=0, runs=1, plain_rates=PLAIN_RATES[:1])


def records(part: str, count: int, *, whole: bool = False) -> tuple[list[Record], list[str]]:
    """`count` records of a fixed shuffle of train or test, after those of the study; and all label texts.

    With `whole` those of the study are among them: 150 of the 3,080 of the test split had a say in the defaults.
    """
    rows = list(csv.DictReader(io.StringIO((DATA / f"{part}.csv").read_text(encoding="utf-8"))))
    order = np.random.default_rng(7).permutation(len(rows))[0 if whole else STUDIED[part] :][:count]
    texts = [(rows[i]["text"], rows[i]["category"].replace("_", " ")) for i in order]
    made = [
        Record(unit=str(n), kind="completion", parts=(("prompt", prompt), ("completion", label)))
        for n, (prompt, label) in enumerate(texts)
    ]
    return made, sorted({row["category"].replace("_", " ") for row in rows})


def planned(
    model_dir: Path, epsilon: float, units: int, epochs: int | None = None
) -> tuple[PrivacyPlan, LoraSpec, TrainSpec]:
    """What `train plan` chooses for so many declared units, with nothing set but epsilon and the epochs."""
    chosen = settings(PlanRequest(epsilon=epsilon, name="bench"), units)
    if epochs is not None:
        batch = chosen["train"]["expected_batch_size"]
        steps = max(1, round(epochs * units / batch))
        chosen = settings(PlanRequest(epsilon=epsilon, name="bench", steps=steps, expected_batch_size=batch), units)
    lora, choice, privacy = LoraSpec(**chosen["lora"]), chosen["train"], chosen["privacy"]
    parameters = lora.trainable(inspect(model_dir).shapes)
    counts = {key: choice[key] for key in ("expected_batch_size", "steps", "spare_steps")}
    bound = {key: privacy[key] for key in ("clipping", "max_grad_norm")}
    plan = make_plan(unit=UnitOfPrivacy(), declared_units=units, epsilon=epsilon, delta=None,
                     trainable_parameters=parameters, **counts, **bound)  # fmt: skip
    spec = {key: choice[key] for key in ("lr", "max_tokens", "init_seed")}
    return plan, lora, TrainSpec(**spec)


def private(
    model_dir: Path,
    training: list[Record],
    epsilon: float,
    *,
    engine: EngineOptions = ENGINE,
    epochs: int | None = None,
) -> Trained:
    """An adapter trained with DP-SGD as the product does it."""
    plan, lora, spec = planned(model_dir, epsilon, len(training), epochs)
    job = TrainJob(
        schema="appliance.job/1", run_id="bench", plan=plan, lora=lora, train=spec, engine=engine,
        isolation=IsolationSpec(), model_dir="m", model_sha256="0" * 64, agent_socket="s",
        dataset=SealedObject(dataset_id="d", path="p", blake3="1" * 64, wrapped_key="w", key_epoch=1),
    )  # fmt: skip
    model, tokenizer = load(model_dir, torch.bfloat16)
    model.to(engine.device)
    return train(job, model, tokenizer, training, MemoryJournal(), MemorySnapshots(), lambda public: None)


class PlainSum:
    """In place of the engine's exact sum: the same gradients, neither clipped nor rounded."""

    def __init__(self, width: int, parameters: int, device: str = "cpu") -> None:
        self._sum, self._parameters = torch.zeros(width, device=device), parameters

    def add(self, gradients: Tensor) -> None:
        self._sum += gradients.sum(0, dtype=torch.float32)

    def take(self) -> Tensor:
        taken, self._sum = self._sum[: self._parameters], torch.zeros_like(self._sum)
        return taken


def plain(
    model_dir: Path, training: list[Record], lr: float, *, options: EngineOptions = ENGINE, epochs: int | None = None
) -> Trained:
    """An adapter trained without privacy: as many steps and records as the private ones, no clip, no noise."""
    plan, lora, spec = planned(model_dir, 8.0, len(training), epochs)
    model, tokenizer = load(model_dir, torch.bfloat16)
    model.to(options.device)
    lora = lora.model_copy(update={"freeze_a": False})  # ordinary LoRA, whatever the defaults are
    mechanism = assemble(plan, lora, spec.model_copy(update={"lr": lr}), options, model, tokenizer)
    engine: Any = mechanism.engine
    engine.sum = PlainSum(engine.buffer.width, mechanism.adapter.parameters, options.device)
    sampler = PoissonSampler(len(training), plan.sample_rate)
    encoded = [mechanism.encoder.encode(record) for record in training]
    for _ in range(plan.steps):
        engine.accumulate([[encoded[i]] for i in sampler.draw()])
        mechanism.optimizer.apply(engine.sum.take())
    return collect(mechanism.adapter, plan.steps, plan.steps, private=False)


def stock(model_dir: Path, trained: Trained | None, directory: Path) -> Any:
    """The model with the adapter as anyone would load it."""
    from peft import LoraConfig, PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.bfloat16).eval()
    if trained is None:
        return model
    directory.mkdir(exist_ok=True)
    save_file(trained.state, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    LoraConfig(**{k: trained.config[k] for k in ("r", "lora_alpha", "target_modules", "task_type")}).save_pretrained(
        directory
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft 0.21 asks transformers 5 by an old name
        return PeftModel.from_pretrained(model, directory).eval()


@torch.inference_mode()
def losses(model: Any, held_out: list[Encoded]) -> list[float]:
    """Mean cross-entropy per record over its supervised tokens, nat."""
    found = []
    for record in held_out:
        ids, positions = torch.tensor([record.ids]), torch.tensor(record.positions)
        logits = model(input_ids=ids, use_cache=False).logits[0, positions].float()
        found.append(torch.nn.functional.cross_entropy(logits, ids[0, positions + 1]).item())
    return found


def hits(model: Any, encoder: Encoder, held_out: list[Record], labels: list[str]) -> list[float]:
    """1 where the true label is the likeliest of all labels (sum over its tokens and the end of the turn), else 0."""
    chances, _ = scores(model, encoder, held_out, labels)
    best = chances.argmax(1).tolist() if held_out else []
    return [float(labels[at] == record.parts[1][1]) for at, record in zip(best, held_out, strict=True)]


@torch.inference_mode()
def scores(model: Any, encoder: Encoder, held_out: list[Record], labels: list[str]) -> tuple[Tensor, Tensor]:
    """The log-likelihood of every label for every record, float32 [records, labels], and the labels' token counts.

    All labels follow one prompt in one row, each seeing the prompt and itself alone. Prompts of one length share a
    batch, so nothing is padded.
    """
    prompts, tails = _prompts_and_tails(encoder, held_out, labels)
    found = torch.zeros(len(held_out), len(labels))
    lengths = sorted({len(prompt) for prompt in prompts})
    for length in lengths:
        same = [at for at, prompt in enumerate(prompts) if len(prompt) == length]
        rows = max(1, _SCORED_TOKENS // (length + sum(map(len, tails))))
        for start in range(0, len(same), rows):
            part = same[start : start + rows]
            found[part] = _label_chances(model, [prompts[at] for at in part], tails)
    return found, torch.tensor([len(tail) for tail in tails])


def _prompts_and_tails(
    encoder: Encoder, held_out: list[Record], labels: list[str]
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """The tokens before a label, of each record, and from its first token on, of each label."""

    def split(prompt: tuple[str, str], label: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        row = encoder.encode(Record(unit="", kind="completion", parts=(prompt, ("completion", label))))
        first = row.positions[0] + 1
        if row.positions != tuple(range(first - 1, len(row.ids) - 1)):
            raise AssertionError("a label is not supervised to its end")
        return row.ids[:first], row.ids[first:]

    tails = [split(("prompt", ""), label)[1] for label in labels]
    return [split(record.parts[0], labels[0])[0] for record in held_out], tails


def _label_chances(model: Any, prompts: list[tuple[int, ...]], tails: list[tuple[int, ...]]) -> Tensor:
    """For prompts of one length: [prompts, labels] on the CPU."""
    device, length = model.device, len(prompts[0])
    flat = [token for tail in tails for token in tail]
    owner = torch.tensor([number for number, tail in enumerate(tails) for _ in tail], device=device)
    place = torch.tensor([at for tail in tails for at in range(len(tail))], device=device)
    ids = torch.tensor([[*prompt, *flat] for prompt in prompts], device=device)
    positions = torch.cat([torch.arange(length, device=device), length + place])[None]
    seen = torch.ones(length + len(flat), length + len(flat), dtype=torch.bool, device=device).tril()
    seen[length:, length:] &= owner[:, None] == owner[None]
    body = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = body.model(
        input_ids=ids, position_ids=positions, attention_mask=seen[None, None], use_cache=False
    ).last_hidden_state
    # What predicts a label's first token is the prompt's last one, and its other tokens the one before.
    before = torch.where(place == 0, length - 1, length + torch.arange(len(flat), device=device) - 1)
    found = torch.zeros(len(prompts), len(tails), device=device)
    targets = ids[:, length:]
    for start in range(0, len(flat), step := max(1, _LOGITS // (len(prompts) * model.config.vocab_size))):
        logits = body.lm_head(hidden[:, before[start : start + step]]).float()
        chances = logits.gather(2, targets[:, start : start + step, None])[:, :, 0] - logits.logsumexp(-1)
        found.index_add_(1, owner[start : start + step], chances)
    return found.cpu()


def tuned(sweep: Any, task: Any, training: list[Record]) -> Trained | None:
    """The adapter of one case of a sweep; None for the base."""
    options = EngineOptions(device=sweep.device, dtype="bfloat16", physical_tokens=sweep.tokens, **on_gpu(sweep.device))
    directory = Path(sweep.model)
    if task.kind == "base":
        return None
    if task.kind == "plain":
        return plain(directory, training, task.lr, options=options, epochs=task.epochs)
    return private(directory, training, task.epsilon, engine=options, epochs=task.epochs)


def on_gpu(device: str) -> dict[str, Any]:
    """Engine options that `train start` chooses where a GPU's memory holds them."""
    if device == "cpu":
        return {}
    room = int(torch.cuda.get_device_properties(0).total_memory) // GRADIENT_SHARE
    return {"cuda_graphs": True, "gradient_bytes": room}


def judged(
    sweep: Any, trained: Trained | None, test: list[Record], labels: list[str], directory: Path
) -> tuple[list[float], list[float]]:
    """Loss (nat per token of the true label) and hit of every test record."""
    model = stock(Path(sweep.model), trained, directory).to(sweep.device)
    encoder = Encoder(load_tokenizer(Path(sweep.model)), TrainSpec(lr=1.0, max_tokens=512))
    chances, counts = scores(model, encoder, test, labels)
    truth = torch.tensor([labels.index(record.parts[1][1]) for record in test])
    losses = -chances[torch.arange(len(test)), truth] / counts[truth]
    return losses.tolist(), (chances.argmax(1) == truth).float().tolist()


def mean_interval(values: list[float]) -> tuple[float, float, float]:
    """Mean and 95 % interval (Student's t)."""
    from scipy.stats import t

    n = len(values)
    mean = math.fsum(values) / n
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    half = float(t.ppf(0.975, n - 1)) * deviation / math.sqrt(n)
    return mean, mean - half, mean + half


def kept(base: list[float], best: list[float], tuned: list[float]) -> tuple[float, float, float]:
    """The gain of `tuned` as a share of that of `best`, over the same records; interval by linearisation."""
    most = math.fsum(b - p for b, p in zip(base, best, strict=True)) / len(base)
    share = math.fsum(b - t for b, t in zip(base, tuned, strict=True)) / len(base) / most
    rest = [((b - t) - share * (b - p)) / most for b, p, t in zip(base, best, tuned, strict=True)]
    _, low, high = mean_interval(rest)
    return share, share + low, share + high


def figures(work: Path, *, quick: bool) -> list[Figure]:
    """All figures; none where the data are not there."""
    size = QUICK if quick else FULL
    training, _ = records("train", size.units)
    test, labels = records("test", size.held_out)
    model_dir = media.model(work / "model")
    plan, _, spec = planned(model_dir, 8.0, size.units)
    encoder = Encoder(load_tokenizer(model_dir), spec)
    held_out = [encoder.encode(record) for record in test]
    found: dict[str, list[float]] = {}
    accuracy: dict[str, list[float]] = {}

    def judge(case: str, trained: Trained | None) -> None:
        model = stock(model_dir, trained, work / "adapter")
        found[case] = losses(model, held_out)
        accuracy[case] = hits(model, encoder, test[: size.ranked], labels)
        print(f"{case}: loss {mean_interval(found[case])}, {sum(accuracy[case])} hits", file=sys.stderr, flush=True)

    judge("base", None)
    for rate in size.plain_rates:
        judge(f"plain {rate:g}", plain(model_dir, training, rate))
    for epsilon in BARS:
        cases = [f"eps{epsilon} run {number}" for number in range(1, size.runs + 1)]
        for case in cases:
            judge(case, private(model_dir, training, float(epsilon)))
        found[f"eps{epsilon}"], accuracy[f"eps{epsilon}"] = averaged(found, cases), averaged(accuracy, cases)
    rate = min(size.plain_rates, key=lambda r: math.fsum(found[f"plain {r:g}"]))
    found["plain"], accuracy["plain"] = found[f"plain {rate:g}"], accuracy[f"plain {rate:g}"]
    setting = f"{size.units} units, {plan.steps} steps of {plan.expected_batch_size}, plain lr {rate:g}"
    kept_figures = _kept_figures(found, setting, len(test), quick=quick)
    return kept_figures if quick else kept_figures + _case_figures(found, accuracy, size.runs)


def averaged(found: dict[str, list[float]], cases: list[str]) -> list[float]:
    """For every test record the mean over runs."""
    return [math.fsum(values) / len(values) for values in zip(*(found[case] for case in cases), strict=True)]


def _kept_figures(found: dict[str, list[float]], setting: str, count: int, *, quick: bool) -> list[Figure]:
    made = []
    for epsilon, bar in BARS.items():
        share, low, high = kept(found["base"], found["plain"], found[f"eps{epsilon}"])
        runs = [tuned for case, tuned in found.items() if case.startswith(f"eps{epsilon} run")]
        each = ", ".join(f"{kept(found['base'], found['plain'], tuned)[0]:.3f}" for tuned in runs)
        note = f"{setting}; runs {each}; spread: 95 % over {count} paired test records, of the mean of the runs"
        made.append(Figure(name=f"gain_kept_eps{epsilon}", value=share, unit="ratio", better="higher",
                           bar=None if quick else bar, spread=(low, high), peer="plain LoRA",
                           repeats=len(runs), note=note))  # fmt: skip
    return made


def _case_figures(found: dict[str, list[float]], accuracy: dict[str, list[float]], runs: int) -> list[Figure]:
    made = []
    for name, cases, unit, better in (("loss", found, "nat", "lower"), ("accuracy", accuracy, "", "higher")):
        for case in ("base", "plain", "eps3", "eps8"):
            mean, low, high = mean_interval(cases[case])
            note = f"{len(cases[case])} test records"
            if case != "base":
                change = [v - b for v, b in zip(cases[case], cases["base"], strict=True)]
                note += "; against base {:+.4f} ({:+.4f} to {:+.4f}, paired)".format(*mean_interval(change))
            made.append(
                Figure(name=f"{name}_{case}", value=mean, unit=unit, better=better, spread=(low, high), note=note,
                       repeats=runs if case.startswith("eps") else 1)
            )  # fmt: skip
    return made
