"""Marks one module: every singular pair is turned a little, in directions that only the key knows.

    U' = U + a (I - U U^T) Y,   V' = V + a (I - N N^T) X,   a = rho / sqrt(o + i),   N = span [V, P]
    B' = U' sqrt(S) / s,        A' = sqrt(S) V'^T

The rank stays r, the norm of the change is about rho times that of dW, and a module that is zero stays zero.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from appliance.watermark.keys import signs
from appliance.watermark.reference import Reference, complements


def amplitude(reference: Reference, rho: float) -> float:
    """Choose a, the size of one entry of the turn."""
    return rho / math.sqrt(reference.outputs + reference.inputs)


def mark(reference: Reference, key: bytes, rho: float, scale: float) -> tuple[Tensor, Tensor]:
    """Mark the factors of one module.

    Args:
      reference: the module before.
      key: the module's key.
      rho: strength.
      scale: s = alpha / r, unchanged by the mark.

    Returns:
      A' [r, i] and B' [o, r], float32.
    """
    y, x = signs(key, reference.outputs, reference.inputs, reference.rank)
    left, right = complements(reference)
    a = amplitude(reference, rho)
    root = reference.s.double().sqrt()
    u = reference.u.double() + a * left(y)
    v = reference.v.double() + a * right(x)
    return (root[:, None] * v.T).float().contiguous(), (u * root / scale).float().contiguous()


def measure_turn(reference: Reference, marked_a: Tensor, marked_b: Tensor, scale: float) -> float:
    """Measure |dW' - dW| / |dW|, without forming either; 0 for a module that is zero."""
    if reference.is_zero:
        return 0.0
    root = reference.s.double().sqrt()
    left = torch.cat([marked_b.double() * scale, -reference.u.double() * root], dim=1)
    right = torch.cat([marked_a.double(), (reference.v.double() * root).T], dim=0)
    # |L R| from the triangular factors alone.
    change = torch.linalg.qr(left).R @ torch.linalg.qr(right.T).R.T
    return float(change.norm() / reference.s.double().norm())
