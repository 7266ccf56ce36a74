"""Parts that the tests of training share: tiny models, synthetic jobs, an in-memory journal and snapshots."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from appliance.jobs.job import EngineOptions, IsolationSpec, SealedObject
from appliance.jobs.lora import LoraSpec
from appliance.jobs.plan import PrivacyPlan, UnitOfPrivacy
from appliance.jobs.record import Record
from appliance.jobs.train import TrainJob, TrainSpec
from appliance.models.quantising import load_quantised
from appliance.train.adapting import adapt
from appliance.train.encode import Encoded, buckets
from appliance.train.engine import Engine
from appliance.train.engines import Ranks
from appliance.train.following import NotHere
from appliance.train.loop import Trainer
from appliance.train.mechanism import assemble
from appliance.train.optimizer import Noise


def load(directory: Any, dtype: torch.dtype = torch.float32) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)


def plan(**changes: Any) -> PrivacyPlan:
    values: dict[str, Any] = {
        "unit": UnitOfPrivacy(),
        "declared_units": 40,
        "expected_batch_size": 8,
        "steps": 3,
        "spare_steps": 2,
        "max_grad_norm": 0.5,
        "clipping": "fixed",
        "noise_multiplier": 1.0,
        "epsilon": 8.0,
        "delta": 1e-4,
        "sampler_delta": 0.0,
    }
    return PrivacyPlan(**(values | changes))


def job(plan: PrivacyPlan, *, spec: TrainSpec | None = None, options: EngineOptions | None = None) -> TrainJob:
    return TrainJob(
        schema="appliance.job/1",
        run_id="run-1",
        plan=plan,
        lora=LoraSpec(r=4),
        train=spec or TrainSpec(lr=1e-2, max_tokens=96),
        engine=options or EngineOptions(physical_tokens=256),
        isolation=IsolationSpec(),
        model_dir="model",
        model_sha256="0" * 64,
        dataset=SealedObject(dataset_id="d", path="p", blake3="1" * 64, wrapped_key="w", key_epoch=1),
        agent_socket="s",
    )


def trainer(
    job: TrainJob,
    model: Any,
    tokenizer: Any,
    *kept: Any,
    ranks: Ranks | None = None,
    noise: Noise | None = None,
    kind: type[Trainer] = Trainer,
    **parts: Any,
) -> Any:
    """A trainer as `train` makes it, with a sampler or a noise source of the test. `kept` is what follows the
    tokenizer in `train`: records, journal, snapshots, progress."""
    noise = noise if ranks is None or ranks.main else NotHere()
    made = assemble(job.plan, job.lora, job.train, job.engine, model, tokenizer, noise)
    return kind(made, job.plan, job.model_dump_json(), *kept, ranks=ranks, **parts)


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "freeze-a": {"freeze_a": True},
    "bf16-gradients": {"gradient_dtype": "bfloat16"},
}
"""Options of the engine that every trap is tested under."""

variant: dict[str, Any] = {}
"""The one in force; a fixture sets it."""


def engine(
    directory: Any,
    dtype: torch.dtype = torch.float32,
    targets: Any = "all-linear",
    random_b: bool = True,
    options: EngineOptions | None = None,
    quantize: Any = "none",
    **changes: Any,
) -> Engine:
    options = options or EngineOptions(physical_tokens=256)
    options = options.model_copy(update={"dtype": str(dtype).removeprefix("torch.")})
    options = options.model_copy(update={"gradient_dtype": variant.get("gradient_dtype", options.gradient_dtype)})
    if quantize == "none":
        model = load(directory, dtype)
    else:
        model, _ = load_quantised(directory, dtype, quantize)
    spec = LoraSpec(r=4, targets=targets, freeze_a=variant.get("freeze_a", False), quantize_base=quantize)
    adapter = adapt(model, spec, 7)
    generator = torch.Generator().manual_seed(5)
    for site in adapter.sites:
        if random_b:
            site.b.data.copy_(torch.randn(site.b.shape, generator=generator) * 0.1)
    return Engine(adapter, plan(**changes), options, 0)


def encoded(tokens: int, seed: int, supervised: int | None = None) -> Encoded:
    generator = torch.Generator().manual_seed(seed)
    ids = tuple(torch.randint(5, 261, (tokens,), generator=generator).tolist())
    first = tokens - 1 - (supervised if supervised is not None else tokens // 2)
    return Encoded(ids, tuple(range(max(0, first), tokens - 1)), next(n for n in buckets(512) if n >= tokens))


def clipped(engine: Engine, batch: list[Encoded]) -> torch.Tensor:
    """The integers that each record adds to the sum, float32 [len(batch), P]."""
    rows = engine.gradients(batch)
    return (rows * engine.sum.factors(rows)[:, None]).round_()[:, : engine.adapter.parameters].clone()


def total(engine: Engine, units: list[list[Encoded]]) -> torch.Tensor:
    engine.accumulate(units)
    return engine.sum.take()


def people(count: int, units: int | None = None) -> list[Record]:
    return [
        Record(
            unit=f"u{i % (units or count)}",
            kind="completion",
            parts=(("prompt", f"question {i} " + "x" * (i % 7)), ("completion", f"answer {i * 37 % 101}")),
        )
        for i in range(count)
    ]


@dataclass
class MemoryState:
    attempts: int = 0
    steps: int = 0


@dataclass
class MemoryJournal:
    """The journal's law without a disk."""

    state: MemoryState = field(default_factory=MemoryState)
    events: list[tuple[str, int]] = field(default_factory=list)

    def attempt(self, sample_rate: Any, noise_multiplier: float) -> int:
        self.state.attempts += 1
        self.events.append(("attempt", self.state.attempts))
        return self.state.attempts

    def record_release(self, step: int, sha256: str) -> None:
        self.state.steps = step
        self.events.append(("released", step))

    def record_checkpoint(self, step: int, sha256: str) -> None:
        self.events.append(("checkpointed", step))


@dataclass
class MemorySnapshots:
    """Snapshots in a dictionary."""

    stored: dict[str, bytes] = field(default_factory=dict)

    def save(self, name: str, data: bytes) -> None:
        self.stored[name] = data

    def load(self, name: str) -> bytes | None:
        return self.stored.get(name)

    def delete(self, name: str) -> None:
        self.stored.pop(name, None)


class FixedSampler:
    """Test only: the n-th draw is a known set of units."""

    def __init__(self, units: int, seed: int = 0, start: int = 0) -> None:
        self._units, self._seed, self._next = units, seed, start

    def draw(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        generator = np.random.default_rng([self._seed, self._next])
        self._next += 1
        return np.flatnonzero(generator.random(self._units) < 0.2).astype(np.int64)


class NoNoise(Noise):
    """Test only."""

    def draw(self, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.zeros(count, dtype=np.int64)
