"""What a model does to its logits is found by running it, applied by the engine, and refused where it is not known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from appliance.errors import ConfigInvalid, GateFailed
from appliance.jobs.job import EngineOptions
from appliance.jobs.lora import LoraSpec
from appliance.train import engine as engine_module
from appliance.train.adapting import adapt, body
from appliance.train.engine import Engine
from appliance.train.logits import Logits, find_logits
from appliance.train.proofs import prove_exact
from tests.unit.train.rig import plan

COMMON = {
    "vocab_size": 272, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 4,
}  # fmt: skip
KINDS: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "llama": ({}, {}),
    "granite": ({"logits_scaling": 8.0}, {"scale": 0.125}),
    "cohere": ({"logit_scale": 0.0625}, {"scale": 0.0625}),
    "gemma2": ({"final_logit_softcapping": 0.5, "sliding_window": 32}, {"cap": 0.5}),
}


def build(kind: str, seed: int = 4, **changes: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = AutoConfig.for_model(kind, **{**COMMON, **changes})
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def made_engine(model: Any) -> Engine:
    adapter = adapt(model, LoraSpec(r=4), 7)
    generator = torch.Generator().manual_seed(5)
    for site in adapter.sites:
        site.b.data.copy_(torch.randn(site.b.shape, generator=generator) * 0.1)
    return Engine(adapter, plan(), EngineOptions(physical_tokens=128), 0)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_found_and_the_gradients_are_exact(kind: str) -> None:
    changes, expected = KINDS[kind]
    model = build(kind, **changes)
    model.get_output_embeddings().weight.data *= 20  # so that a cap is felt
    found = find_logits(model, body(model))
    assert {"before": found.before, "scale": found.scale, "cap": found.cap} == pytest.approx(
        {"before": 1.0, "scale": 1.0, "cap": 0.0, **expected}, rel=1e-6
    )
    ids = torch.arange(5, 21)[None]
    hidden = body(model)(input_ids=ids, use_cache=False).last_hidden_state
    torch.testing.assert_close(found(hidden[0]), model(input_ids=ids).logits[0])
    prove_exact(made_engine(model))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "llama"])
def test_a_head_without_it_is_noticed_by_the_proof(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(kind, **KINDS[kind][0])
    model.get_output_embeddings().weight.data *= 20
    monkeypatch.setattr(engine_module, "find_logits", lambda model, body: Logits(model.get_output_embeddings()))
    with pytest.raises(GateFailed, match="differ from plain automatic differentiation"):
        prove_exact(made_engine(model))


def patched(change: Callable[[Tensor], Tensor]) -> Any:
    """A Llama that changes its logits in a way of its own."""
    model = build("llama")
    own = model.forward

    def forward(*given: Any, **named: Any) -> Any:
        out = own(*given, **named)
        out.logits = change(out.logits)
        return out

    model.forward = forward
    return model


def test_scale_and_cap_together() -> None:
    model = patched(lambda z: 30 * torch.tanh(z * 0.25 / 30))
    found = find_logits(model, body(model))
    assert (found.scale, found.cap) == pytest.approx((0.25, 30.0), rel=1e-6)


@pytest.mark.parametrize(
    "change",
    [torch.sinh, lambda z: z + 1, lambda z: -z, lambda z: z.log_softmax(-1), lambda z: torch.clamp(z, -5, 5)],
    ids=["sinh", "shifted", "reversed", "normalised", "cut off"],
)
def test_what_is_neither_scale_nor_cap_is_refused(change: Callable[[Tensor], Tensor]) -> None:
    model = patched(change)
    with pytest.raises(ConfigInvalid, match="the logits of this model cannot be followed"):
        find_logits(model, body(model))


def test_looking_leaves_the_model_as_it_was() -> None:
    model = build("granite", logits_scaling=4.0)
    ids = torch.arange(5, 21)[None]
    before = model(input_ids=ids).logits
    find_logits(model, body(model))
    assert "forward" not in vars(body(model))
    assert "forward" not in vars(model.get_output_embeddings())
    assert torch.equal(model(input_ids=ids).logits, before)
