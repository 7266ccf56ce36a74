"""What a mark will survive, before anything is released: a closed form, fed with the noise of each attack.

With a = rho / sqrt(o + i), n = (o - r) + (i - r - q) and an attack that adds noise of standard deviation sigma to every
weight and passes the share g of a small change, the expected score is

    z = g sum a n sum_j s_j^2 / sqrt( sum n [ g^2 a^2 sum_j s_j^4 + sigma^2 sum_j s_j^2 ] ),

sums over modules outside. sigma and g are measured on a sample of the rows of base model plus adapter, with the
attack itself: nothing in it depends on private data beyond the adapter, which is a differentially private release.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from appliance.watermark.reference import Reference, complements

ROWS = 64
"""Rows of a weight that are sampled for the noise of the attacks."""

TARGETS: Mapping[str, float] = {"nf4": 39.0, "prune50": 16.0}
"""Predicted scores at which the mark is strong enough. After pruning, measured scores stay up to an eighth below the
prediction, which takes the noise as white; 16 leaves the 13.4 of a claim with room for that."""

LARGEST = 0.2
"""The largest strength: beyond it the mark would begin to cost accuracy."""

_NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334),
    *(-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


def _bf16(weight: Tensor) -> Tensor:
    return weight.bfloat16().float()


def _int8(weight: Tensor) -> Tensor:
    scale = weight.abs().amax(dim=1, keepdim=True).clamp_min(1e-30) / 127
    return (weight / scale).round() * scale


def _blocks(weight: Tensor, size: int) -> tuple[Tensor, Tensor]:
    flat = weight.flatten()
    blocks = torch.nn.functional.pad(flat, (0, -flat.numel() % size)).view(-1, size)
    return blocks, blocks.abs().amax(dim=1, keepdim=True).clamp_min(1e-30)


def _nf4(weight: Tensor) -> Tensor:
    blocks, largest = _blocks(weight, 64)
    levels = torch.tensor(_NF4)
    codes = torch.bucketize(blocks / largest, (levels[1:] + levels[:-1]) / 2)
    return (levels[codes] * largest).flatten()[: weight.numel()].view_as(weight)


def _int4(weight: Tensor) -> Tensor:
    blocks, largest = _blocks(weight, 128)
    steps = (blocks / largest * 7).round().clamp(-8, 7)
    return (steps * largest / 7).flatten()[: weight.numel()].view_as(weight)


def _prune(share: float) -> Callable[[Tensor], Tensor]:
    def prune(weight: Tensor) -> Tensor:
        size = weight.abs()
        threshold = size.flatten().kthvalue(max(1, int(share * size.numel()))).values
        return torch.where(size > threshold, weight, 0.0)

    return prune


ATTACKS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "none": lambda weight: weight,
    "bf16": _bf16,
    "int8": _int8,
    "nf4": _nf4,
    "int4_g128": _int4,
    "prune30": _prune(0.3),
    "prune50": _prune(0.5),
}
"""What may happen to a merged weight [o, i], float32 to float32: INT8 by rows, NF4 in blocks of 64, INT4 in groups of
128, pruning by magnitude."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What the closed form needs of one module.

    Attributes:
      size: o + i.
      free: n, dimensions in which a mark can lie.
      second: sum of s_j^2.
      fourth: sum of s_j^4.
      noise: variance that each attack adds to a weight.
      passed: for each attack, what it passed of a small probe, and the probe's size (numerator, denominator of g).
    """

    size: int
    free: int
    second: float
    fourth: float
    noise: dict[str, float]
    passed: dict[str, tuple[float, float]]


@torch.no_grad()
def sample(reference: Reference, weight: Tensor) -> Sample:
    """Measure the attacks on one module.

    Args:
      reference: the module's reference; not zero.
      weight: the base model's weight [o, i].
    """
    chosen = torch.linspace(0, weight.shape[0] - 1, min(ROWS, weight.shape[0])).long()
    rows = weight[chosen].float() + (reference.u[chosen] * reference.s) @ reference.v.T
    spread = float(reference.s.norm()) / math.sqrt(reference.outputs * reference.inputs)
    generator = torch.Generator().manual_seed(0)
    probe = LARGEST * spread * (2.0 * torch.randint(0, 2, rows.shape, generator=generator) - 1.0)
    noise, passed = {}, {}
    for name, attack in ATTACKS.items():
        noise[name] = float((attack(rows) - rows).double().square().mean())
        answer = (attack(rows + probe) - attack(rows - probe)).double()
        passed[name] = float((answer * probe).sum()), float(2 * probe.double().square().sum())
    left, right = complements(reference)
    squares = reference.s.double().square()
    return Sample(
        size=reference.outputs + reference.inputs,
        free=left.dimensions + right.dimensions,
        second=float(squares.sum()),
        fourth=float(squares.square().sum()),
        noise=noise,
        passed=passed,
    )


def predict(samples: Sequence[Sample], rho: float, attack: str) -> float:
    """Predict the expected score of a mark of strength rho after an attack; 0 without any module that can carry it."""
    passed = sum(s.passed[attack][0] for s in samples)
    gain = passed / total if (total := sum(s.passed[attack][1] for s in samples)) else 0.0
    signal = energy = 0.0
    for s in samples:
        a = rho / math.sqrt(s.size)
        signal += gain * a * s.free * s.second
        energy += s.free * ((gain * a) ** 2 * s.fourth + s.noise[attack] * s.second)
    return signal / math.sqrt(energy) if energy > 0 else 0.0


def strength(samples: Sequence[Sample]) -> float:
    """Find the smallest rho (four digits) with every predicted score of `TARGETS`, at most `LARGEST`."""
    low, high = 0.0, LARGEST
    for _ in range(50):
        middle = (low + high) / 2
        enough = all(predict(samples, middle, attack) >= target for attack, target in TARGETS.items())
        low, high = (low, middle) if enough else (middle, high)
    return min(LARGEST, float(f"{high * 1.0005:.3e}"))


def envelope(samples: Sequence[Sample], rho: float) -> dict[str, float]:
    """Predict the score after each attack."""
    return {attack: predict(samples, rho, attack) for attack in ATTACKS}
