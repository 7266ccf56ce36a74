"""The detector: a linear statistic in the key's signs, so that Hoeffding's bound holds for any model whatsoever.

For the residual dv of a module (a suspect adapter's product, or a suspect model minus its base)

    y = (I - U U^T) dv V,   x = (I - N N^T) dv^T U,
    T = sum [<y S, Y> + <x S, X>] / sqrt(sum |y S|^2 + |x S|^2).

For a suspect made without the key the signs are independent of the weights of this sum, and the weights have unit norm:
P(|T| >= t) <= 2 exp(-t^2 / 2) (Hoeffding 1963, theorem 2), with no assumption on the suspect. T sees only the product
dv: another factorisation, a rescaling or a negation of the adapter leaves |T| as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from appliance.errors import DataInvalid
from appliance.watermark.keys import signs
from appliance.watermark.reference import Reference, complements

CLAIM = 13.4
"""|T| from which a mark is claimed: 2 exp(-13.4^2 / 2) < 2^-128, out of reach of whoever tries keys."""

ROUNDING = 1e-5
"""A residual below this share of what the projections removed is rounding, and says nothing."""


class Suspect(Protocol):
    """A model or an adapter under suspicion, as the detector sees it."""

    def products(self, reference: Reference) -> tuple[Tensor, Tensor] | None:
        """Compute dv V [o, r] and dv^T U [i, r] of a module, float64; None if the suspect does not have it."""


@dataclass(frozen=True, slots=True)
class Projected:
    """What of a suspect's module the key is compared with: y S [o, r] and x S [i, r], float64."""

    module: str
    ys: Tensor
    xs: Tensor


@dataclass(frozen=True, slots=True)
class Residual:
    """What a suspect shows in the directions where a mark would be; independent of every key.

    Attributes:
      modules: the projected residual of every module.
      norm: sqrt(sum |y S|^2 + |x S|^2).
      host: the same norm before the projections.
    """

    modules: tuple[Projected, ...]
    norm: float
    host: float

    @property
    def is_rounding(self) -> bool:
        """Whether there is nothing but rounding: an unmarked escrow, a base model, a zero adapter."""
        return not self.norm > ROUNDING * self.host


def project(suspect: Suspect, references: Iterable[Reference]) -> Residual:
    """Compute the residual of a suspect, once for any number of keys.

    Raises:
      DataInvalid: the suspect has none of the layers, so that nothing was compared, or numbers that are not finite.
    """
    found: list[Projected] = []
    norm = host = 0.0
    is_marked = False
    for reference in references:
        is_marked = is_marked or not reference.is_zero
        products = None if reference.is_zero else suspect.products(reference)
        if products is None:
            continue
        s = reference.s.double()
        left, right = complements(reference)
        seen = Projected(reference.module, left(products[0]) * s, right(products[1]) * s)
        found.append(seen)
        norm += float(seen.ys.square().sum() + seen.xs.square().sum())
        host += float((products[0] * s).square().sum() + (products[1] * s).square().sum())
    if is_marked and not found:
        hint = "its tensors have to be named as the base model's are"
        raise DataInvalid("the suspect has none of the layers that the mark is in", hint=hint)
    if not math.isfinite(norm + host):
        raise DataInvalid("the suspect holds numbers that are not finite")
    return Residual(tuple(found), math.sqrt(norm), math.sqrt(host))


def score(residual: Residual, key_of: Callable[[str], bytes]) -> float:
    """Compute T for one key; 0 where the residual is at rounding level.

    Args:
      residual: from `project`.
      key_of: the key of a module, by its name.
    """
    if residual.is_rounding:
        return 0.0
    total = 0.0
    for seen in residual.modules:
        y, x = signs(key_of(seen.module), seen.ys.shape[0], seen.xs.shape[0], seen.ys.shape[1])
        total += float(torch.sum(seen.ys * y) + torch.sum(seen.xs * x))
    return total / residual.norm


def log_p_bound(score: float, keys_tested: int = 1) -> float:
    """Bound p, as a logarithm: ln(2 keys) - T^2 / 2, at most 0 (Hoeffding; Bonferroni over keys)."""
    return min(0.0, math.log(2 * keys_tested) - score * score / 2)


def is_detected(score: float, keys_tested: int = 1) -> bool:
    """Tell whether a mark is claimed: the corrected bound is below 2^-128."""
    return abs(score) >= math.sqrt(CLAIM**2 + 2 * math.log(keys_tested))
