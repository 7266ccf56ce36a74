"""What the detector compares with: the singular value decomposition of every adapted module of the unmarked adapter.

    dW = s B A = U diag(S) V^T,   by QR of the two factors; the o x i matrix is never formed.

The numbers are rounded to the precision of the escrow before the mark is made, so embedder and detector use the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from appliance.errors import DataInvalid

NEGLIGIBLE = 1e-7
"""Singular values below this share of the module's largest are zero: they are rounding of the stored factors."""


@dataclass(frozen=True, slots=True)
class Reference:
    """One adapted module before it was marked.

    Attributes:
      module: name of the linear layer in the base model.
      u: left singular vectors [o, r], float32.
      s: singular values [r], float32, falling; zeros where the adapter does less than its rank allows.
      v: right singular vectors [i, r], float32.
      p: span of the top input directions on public text [i, q], float16; q may be 0.
    """

    module: str
    u: Tensor
    s: Tensor
    v: Tensor
    p: Tensor

    @property
    def rank(self) -> int:
        """The rank r of the adapter."""
        return int(self.s.shape[0])

    @property
    def outputs(self) -> int:
        """The number o of outputs."""
        return int(self.u.shape[0])

    @property
    def inputs(self) -> int:
        """The number i of inputs."""
        return int(self.v.shape[0])

    @property
    def is_zero(self) -> bool:
        """Whether the adapter leaves this module as it is; then there is nothing to carry a mark."""
        return not bool(self.s.any())


def decompose(module: str, a: Tensor, b: Tensor, scale: float, directions: Tensor) -> Reference:
    """Make the reference of one module.

    Args:
      module: its name in the base model.
      a: [r, i].
      b: [o, r].
      scale: s = alpha / r.
      directions: top input directions [i, q].

    Raises:
      DataInvalid: a factor is not finite.
    """
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise DataInvalid("the adapter holds numbers that are not finite", where=module)
    left, left_r = torch.linalg.qr(b.double())
    right, right_r = torch.linalg.qr(a.double().T)
    u, s, vt = torch.linalg.svd(scale * left_r @ right_r.T)
    s = torch.where(s > NEGLIGIBLE * s[0], s, 0.0)
    return Reference(
        module=module,
        u=(left @ u).float(),
        s=s.float(),
        v=(right @ vt.T).float(),
        p=directions.half(),
    )


@dataclass(frozen=True, slots=True)
class Complement:
    """The projection onto what is orthogonal to some directions.

    Attributes:
      basis: an orthonormal basis of those directions [d, k], float64.
    """

    basis: Tensor

    @staticmethod
    def of(*directions: Tensor) -> Complement:
        """Find the complement of the span of the columns of `directions`."""
        return Complement(torch.linalg.qr(torch.cat([d.double() for d in directions], dim=1)).Q)

    def __call__(self, matrix: Tensor) -> Tensor:
        """Take from `matrix` [d, k] its part along the basis. Applied twice: once leaves rounding of the first part."""
        for _ in range(2):
            matrix = matrix - self.basis @ (self.basis.T @ matrix)
        return matrix

    @property
    def dimensions(self) -> int:
        """How many directions are left."""
        return max(0, self.basis.shape[0] - self.basis.shape[1])


def complements(reference: Reference) -> tuple[Complement, Complement]:
    """Find where the mark lives: on the left all but U, on the right all but V and the top input directions."""
    return Complement.of(reference.u), Complement.of(reference.v, reference.p)
