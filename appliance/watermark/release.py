"""Marks a whole adapter: references, strength from the closed form, marked factors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from appliance.errors import GateFailed
from appliance.watermark.adapters import Factors
from appliance.watermark.embedding import mark, measure_turn
from appliance.watermark.envelope import Sample, envelope, sample, strength
from appliance.watermark.reference import Reference, decompose


@dataclass(frozen=True, slots=True)
class Prepared:
    """An adapter that is ready to be marked: the same for every key.

    Attributes:
      references: one for every module, in the order of their names.
      samples: what the closed form knows of those that are not zero.
      rho: the strength that the closed form chose.
      predicted: expected score after each attack at that strength.
    """

    references: tuple[Reference, ...]
    samples: tuple[Sample, ...]
    rho: float
    predicted: dict[str, float]


@dataclass(frozen=True, slots=True)
class Marked:
    """The marked factors by module, float32, and the largest |dW' - dW| / |dW| of a module."""

    a: dict[str, Tensor]
    b: dict[str, Tensor]
    turned: float


def prepare(factors: Factors, weight_of: Callable[[str], Tensor], directions: Mapping[str, Tensor]) -> Prepared:
    """Decompose an adapter and choose the strength.

    Args:
      factors: the unmarked adapter.
      weight_of: the base model's weight [o, i] of a module.
      directions: top input directions of every module.

    Raises:
      GateFailed: the adapter changes nothing, so nothing can carry a mark.
    """
    references = tuple(
        decompose(name, factors.a[name], factors.b[name], factors.scale, directions[name]) for name in factors.names
    )
    samples = tuple(sample(one, weight_of(one.module)) for one in references if not one.is_zero)
    if not samples:
        raise GateFailed("the adapter changes no layer, so there is nothing to mark")
    rho = strength(samples)
    return Prepared(references, samples, rho, envelope(samples, rho))


def embed(prepared: Prepared, key_of: Callable[[str], bytes], scale: float) -> Marked:
    """Mark the adapter.

    Args:
      prepared: from `prepare`.
      key_of: the key of a module, by its name.
      scale: s = alpha / r.
    """
    a: dict[str, Tensor] = {}
    b: dict[str, Tensor] = {}
    largest = 0.0
    for one in prepared.references:
        a[one.module], b[one.module] = mark(one, key_of(one.module), prepared.rho, scale)
        largest = max(largest, measure_turn(one, a[one.module], b[one.module], scale))
    return Marked(a, b, largest)
