"""Can this architecture be trained, and exactly? Tried on a model that nobody's data has come near.

What a run proves before it opens a record is proved here on a few synthetic ones, so that a model that cannot be
trained is known when it is imported: adapter on every linear layer, one micro-batch, its per-record gradients against
plain autograd through the model's own forward, and that no record's bits follow another's.
"""

from __future__ import annotations

from typing import Any

import torch

from appliance.errors import ApplianceError, ConfigInvalid, WillNotFit, ran_out
from appliance.jobs.job import EngineOptions
from appliance.jobs.lora import LoraSpec
from appliance.jobs.plan import PrivacyPlan, UnitOfPrivacy
from appliance.train.adapting import adapt, linear_layers
from appliance.train.engine import Engine
from appliance.train.proofs import prove

_LENGTHS = (8, 16)
_TOKENS = 32
_WIDE = 16
_PLAN = PrivacyPlan(
    unit=UnitOfPrivacy(), declared_units=40, expected_batch_size=8, steps=1, spare_steps=0, max_grad_norm=1.0,
    clipping="fixed", noise_multiplier=1.0, epsilon=8.0, delta=1e-4, sampler_delta=0.0,
)  # fmt: skip


def find_obstacle(model: Any, dtype: str = "float32") -> str:
    """Find why this model cannot be trained exactly; an empty string where it can.

    Args:
      model: a causal language model, changed in place; its weights are of no use afterwards.
      dtype: what it computes in.

    Raises:
      WillNotFit: memory does not suffice to find out.
    """
    try:
        _train(model, dtype)
    except WillNotFit:
        raise
    except ApplianceError as refusal:
        return refusal.message
    except Exception as error:  # noqa: BLE001 - foreign architectures fail in every way
        if ran_out(error):
            raise WillNotFit("memory does not hold the trial", where="base") from None
        return f"it cannot be computed record by record ({type(error).__name__})"
    return ""


def _train(model: Any, dtype: str) -> None:
    options = EngineOptions(physical_tokens=_TOKENS, dtype=dtype)  # type: ignore[arg-type]
    adapter = adapt(model, _choose_adapter(model), 7)
    check_causal(model)
    prove(Engine(adapter, _PLAN, options, 0), _LENGTHS)


def _choose_adapter(model: Any) -> LoraSpec:
    """Adapt every linear layer that is not a gate of a few values: in bfloat16 a small product needs long rows."""
    layers: dict[str, Any] = {n: m for n, m in linear_layers(model).items() if LoraSpec().selects(n)}
    sizes = {name: min(layer.in_features, layer.out_features) for name, layer in layers.items()}
    wide = tuple(name for name, size in sizes.items() if size >= _WIDE)
    whole = LoraSpec(r=min(8, *sizes.values()) if sizes else 8)
    return whole.model_copy(update={"r": 8, "targets": wide}) if wide and len(wide) < len(sizes) else whole


@torch.no_grad()
def check_causal(model: Any) -> None:
    """Refuse a model whose prediction of a token knows it already.

    Raises:
      ConfigInvalid: a logit follows a later token.
    """
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    device = model.get_input_embeddings().weight.device
    ids = torch.arange(3, 11, device=device)[None] % vocabulary
    other = ids.clone()
    other[0, -1] = (ids[0, -1] + 1) % vocabulary
    first, second = (model(input_ids=given, use_cache=False).logits[0, :-1].float() for given in (ids, other))
    if not torch.allclose(first, second, rtol=1e-2, atol=1e-3 * float(first.abs().max())):
        raise ConfigInvalid("it sees the tokens that it is to predict", where="base")
