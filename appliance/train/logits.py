"""From hidden states to logits as the model itself does it: scaled before or behind the head, or capped softly.

Granite divides its logits, Cohere multiplies them, Gemma 2 caps them by c tanh(z / c). What a model does is found by
running its own forward with body and head replaced by numbers that are known; what is not of this family is refused.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from appliance.errors import ConfigInvalid

_PROBES = (1e-4, 1e8, -3e4, -300.0, -30.0, -3.0, -0.3, -1e-4, 0.0, 0.3, 3.0, 30.0, 300.0, 3e4)
"""What the head is made to give: first a number that no cap feels, then one far beyond any cap."""
_CLOSE = 1e-4  # relative error that float32 may make


@dataclass(frozen=True, slots=True)
class Logits:
    """A language-model head with what its model does around it.

    Attributes:
      head: the frozen linear layer.
      before: the hidden states are multiplied by it.
      scale: what the head gives is multiplied by it.
      cap: and then capped by cap tanh(z / cap); 0 for not at all.
    """

    head: Any
    before: float = 1.0
    scale: float = 1.0
    cap: float = 0.0

    def __call__(self, states: Tensor) -> Tensor:
        """Compute logits, float32 [n, vocabulary]."""
        z: Tensor = self.head(states if self.before == 1 else states * self.before).float()
        if self.scale != 1:
            z = z * self.scale
        return torch.tanh(z / self.cap) * self.cap if self.cap else z

    @property
    def plain(self) -> bool:
        """Whether the logits are what the head gives."""
        return self.scale == 1 and not self.cap

    def slope(self, logits: Tensor) -> Tensor:
        """Differentiate each logit by what the head gave for it, float32 [n, vocabulary]."""
        return (1 - (logits / self.cap) ** 2) * self.scale if self.cap else torch.full_like(logits, self.scale)


@torch.no_grad()
def find_logits(model: Any, body: Any) -> Logits:
    """Find what the model does between the last hidden states and its logits.

    Args:
      model: a causal language model.
      body: the part of it that gives the hidden states.

    Raises:
      ConfigInvalid: it does something else than to scale and to cap.
    """
    head = model.get_output_embeddings()
    if head.weight.is_meta:  # without numbers nothing is trained: such a model is only measured
        return Logits(head)
    ids = torch.zeros(1, 8, dtype=torch.long, device=head.weight.device)
    given = body(input_ids=ids, use_cache=False)
    shape, device = given.last_hidden_state.shape, ids.device
    sent = torch.linspace(0.5, 1.5, shape[-1], device=device).expand(shape).contiguous()
    probes = torch.tensor(_PROBES, device=device)
    raw = probes.repeat(head.weight.shape[0] // len(probes) + 1)[: head.weight.shape[0]].expand(1, 8, -1).contiguous()
    got: list[Tensor] = []
    with _standing_in(body, _replace(given, sent)), _standing_in(head, raw, got):
        logits = model(input_ids=ids, use_cache=False).logits
    if len(got) != 1 or got[0].shape != sent.shape or logits.shape != raw.shape:
        raise _refusal("its head is not called once with all hidden states")
    before = _ratio(got[0], sent)
    scale, cap = _fit(raw[0, 0].double().cpu(), logits[0, 0].double().cpu())
    return Logits(head, before, scale, cap)


def _fit(raw: Tensor, logits: Tensor) -> tuple[float, float]:
    """Fit scale and cap to numbers of the head and what the model made of them."""
    if len(raw) < len(_PROBES):
        raise _refusal("the vocabulary is too small to look at")
    scale, end = float(logits[0] / raw[0]), float(logits[1])
    if not math.isfinite(scale) or scale <= 0:
        raise _refusal("its logits do not grow with what the head gives")
    capped = end < scale * float(raw[1]) / 2
    near, top = _round(scale), end if capped else 0.0
    fitted = torch.tanh(raw * near / top) * top if capped else raw * near
    if not torch.allclose(fitted, logits, rtol=_CLOSE, atol=1e-7 * (top or 1)):
        raise _refusal("its logits are neither scaled nor capped, but something else")
    return near, _round(top)


def _ratio(got: Tensor, sent: Tensor) -> float:
    ratio = (got.float() / sent).reshape(-1)
    if not torch.allclose(ratio, ratio[0].expand_as(ratio), rtol=_CLOSE):
        raise _refusal("the hidden states are changed on their way to the head")
    return _round(float(ratio[0]))


def _round(value: float) -> float:
    """Take what float32 says of a short decimal for that decimal: 1 for 0.99999994."""
    short = float(f"{value:.5g}")
    return short if math.isclose(short, value, rel_tol=1e-6) else value


def _replace(given: Any, hidden: Tensor) -> Any:
    found = copy.copy(given)
    found.last_hidden_state = hidden
    return found


@contextmanager
def _standing_in(module: Any, result: Any, got: list[Tensor] | None = None) -> Iterator[None]:
    """Let a module, within the block, give this result, and note what it was given."""

    def forward(*given: Any, **named: Any) -> Any:
        if got is not None:
            got.append(given[0])
        return result

    own = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


def _refusal(why: str) -> ConfigInvalid:
    return ConfigInvalid(f"the logits of this model cannot be followed: {why}", where="base")
