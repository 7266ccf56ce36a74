"""Whether an architecture can be trained is found on a small model of it: what works, what does not, and why."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from appliance.models.twin import build_twin, derive, shrink
from appliance.train.trial import find_obstacle

TRAINED = (
    *(
        "llama",
        "qwen3",
        "granite",
        "cohere",
        "gemma2",
        "gemma3",
        "bloom",
        "mpt",
        "gpt_neo",
        "falcon",
        "phi3",
        "gpt_neox",
    ),
    *("gpt_neox", "mixtral", "deepseek_v3", "opt", "bamba"),
)
REFUSED = {
    "gpt2": "Conv1D",
    "bert": "output head of this model is called",
    "bart": "runs 0 times",
    "hrm_text": "times per forward pass",
    "jamba": "runs 0 times",
    "cpmant": "sees the tokens",
}


def twin(kind: str, **changes: Any) -> Any:
    from transformers import AutoConfig

    config = AutoConfig.for_model(kind, **changes)
    shrink(config)
    return build_twin(config)


@pytest.mark.parametrize("kind", TRAINED)
def test_an_architecture_is_trained_exactly(kind: str) -> None:
    model = twin(kind)
    assert sum(parameter.numel() for parameter in model.parameters()) < 2_000_000
    assert find_obstacle(model) == ""


@pytest.mark.parametrize("kind", REFUSED)
def test_an_architecture_is_refused_with_a_reason(kind: str) -> None:
    assert REFUSED[kind] in find_obstacle(twin(kind))


@pytest.mark.parametrize("precision", ["bfloat16", "nf4", "int8"])
def test_the_other_precisions(precision: Any) -> None:
    assert find_obstacle(derive(twin("llama"), precision), "bfloat16" if precision == "bfloat16" else "float32") == ""


def test_a_model_that_looks_ahead_is_refused() -> None:
    model = twin("llama")
    own = model.model.forward

    def forward(input_ids: torch.Tensor, **more: Any) -> Any:
        out = own(input_ids=input_ids, **more)
        out.last_hidden_state = out.last_hidden_state + out.last_hidden_state.mean(1, keepdim=True)
        return out

    model.model.forward = forward
    assert find_obstacle(model) == "it sees the tokens that it is to predict"
