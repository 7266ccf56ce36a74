"""A training job: the adapter that is built is the one that was planned for, or nothing is sampled."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from appliance.errors import ConfigInvalid, GateFailed
from appliance.jobs.lora import LoraSpec
from appliance.privacy.sampler import sampler_delta
from appliance.train.adapting import adapt
from appliance.train.running import train
from appliance.worker.train import _check_sampler
from tests.unit.train import rig


def shapes(model: Any) -> dict[str, tuple[int, int]]:
    """What the catalog would say of a model."""
    linear = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    return {name: (module.out_features, module.in_features) for name, module in linear.items()}


@pytest.mark.parametrize("family", ["tiny_model_dir", "tiny_deepseek_dir"])
@pytest.mark.parametrize("targets", ["all-linear", "attention", ("down_proj", "layers.1.self_attn.o_proj")])
def test_the_adapter_that_is_forecast_is_the_one_that_is_built(
    request: pytest.FixtureRequest, family: str, targets: Any
) -> None:
    for freeze_a in (False, True):
        model = rig.load(request.getfixturevalue(family))
        spec = LoraSpec(r=4, targets=targets, freeze_a=freeze_a)
        forecast = spec.trainable(shapes(model))
        assert adapt(model, spec, 1).parameters == forecast


def test_an_output_head_of_an_unknown_name_is_not_adapted_unnoticed(tiny_model_dir: Path) -> None:
    model = rig.load(tiny_model_dir)
    model.classifier = model.lm_head
    del model.lm_head
    model.get_output_embeddings = lambda: model.classifier
    with pytest.raises(ConfigInvalid, match="output head of this model is called classifier"):
        adapt(model, LoraSpec(r=4), 1)
    adapt(model, LoraSpec(r=4, targets="attention"), 1)


def test_a_larger_adapter_than_was_planned_for_samples_nothing(tiny_model_dir: Path) -> None:
    from transformers import AutoTokenizer

    model = rig.load(tiny_model_dir)
    size = LoraSpec(r=4).trainable(shapes(model))
    enough = rig.plan()
    share = sampler_delta(size, enough.attempts, enough.epsilon, enough.noise_multiplier)
    _check_sampler(enough.model_copy(update={"sampler_delta": share}), size)
    short = enough.model_copy(update={"sampler_delta": share / 2})
    journal = rig.MemoryJournal()
    with pytest.raises(GateFailed, match="costs more of delta"):
        train(
            rig.job(short),
            model,
            AutoTokenizer.from_pretrained(tiny_model_dir),
            rig.people(40),
            journal,
            rig.MemorySnapshots(),
            lambda public: None,
            confirm=partial(_check_sampler, short),
        )
    assert journal.state.attempts == 0
