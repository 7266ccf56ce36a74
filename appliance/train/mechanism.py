"""The mechanism of a run, put together once: adapter, encoder, engine, noise and optimiser.

`train.loop.Trainer` and the engine self-test both get theirs from `assemble`, so that what is tested is what runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from appliance.jobs.job import EngineOptions
from appliance.jobs.lora import LoraSpec
from appliance.jobs.plan import PrivacyPlan
from appliance.jobs.train import TrainSpec
from appliance.privacy.sampler import noise_variance
from appliance.train.adapting import adapt
from appliance.train.encode import Encoder
from appliance.train.engine import Engine
from appliance.train.following import NotHere
from appliance.train.lora import Adapter
from appliance.train.noise import DiscreteGaussian
from appliance.train.optimizer import ExactDPOptimizer, Noise


@dataclass(frozen=True, slots=True)
class Assembled:
    """The parts of one mechanism, each bound to the others."""

    adapter: Adapter
    encoder: Encoder
    engine: Engine
    optimizer: ExactDPOptimizer

    @property
    def private(self) -> bool:
        """Whether the noise is the plan's own, or another rank's: nobody has put a source of his in its place."""
        return isinstance(self.optimizer._noise, DiscreteGaussian | NotHere)


def assemble(
    plan: PrivacyPlan,
    lora: LoraSpec,
    train: TrainSpec,
    options: EngineOptions,
    model: Any,
    tokenizer: Any,
    noise: Noise | None = None,
) -> Assembled:
    """Adapt the model in place and build the mechanism that the plan accounts for.

    Args:
      plan: clip, noise multiplier and divisor.
      lora: the adapter.
      train: settings of encoder and optimiser.
      options: how the engine computes.
      model: a loaded causal language model in the engine's dtype.
      tokenizer: its tokenizer.
      noise: None is the plan's discrete Gaussian; ranks that draw none pass what refuses to. Tests alone pass others.

    Raises:
      ConfigInvalid: for a model or targets that cannot be trained exactly.
    """
    adapter = adapt(model, lora, train.init_seed)
    encoder = Encoder(tokenizer, train)
    engine = Engine(adapter, plan, options, encoder.pad)
    variance = noise_variance(plan.noise_multiplier, plan.max_grad_norm, adapter.parameters)
    source = noise or DiscreteGaussian(variance, ahead=options.device == "cuda")
    optimizer = ExactDPOptimizer(adapter, engine.sum, source, plan, train.lr)
    return Assembled(adapter, encoder, engine, optimizer)
