"""Which input directions a module uses most, measured on public text: there the mark stays away.

The top eigenvectors of the second moment C = E[x x^T] come from its Nystrom approximation Z (G^T Z)^-1 Z^T with
Z = C G (Tropp, Yurtsever, Udell and Cevher 2017, algorithm 3): one pass of the text through the model, and C itself,
which is d x d, is never formed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

MOST = 64
"""At most this many directions are kept, and at most a tenth of a module's inputs."""

TOKENS = 2048
WINDOW = 256


def directions_of(inputs: int) -> int:
    """Choose q, the number of directions for a module with so many inputs."""
    return min(MOST, inputs // 10)


class _Sketch:
    """Z = sum x (x^T G) of one module, float32 [i, 2 q]."""

    def __init__(self, inputs: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.kept = directions_of(inputs)
        self.probe = torch.randn(inputs, 2 * self.kept, generator=generator)
        self.sum = torch.zeros_like(self.probe)

    def __call__(self, module: nn.Module, received: tuple[Any, ...]) -> None:
        x = received[0].detach().reshape(-1, self.probe.shape[0]).float().cpu()
        self.sum += x.T @ (x @ self.probe)

    def basis(self) -> Tensor:
        if not self.sum.any():  # a module that no public token reached
            return self.sum[:, :0]
        probe, shifted = self.probe.double(), self.sum.double()
        shifted = shifted + 1e-6 * shifted.norm() / probe.norm() * probe  # keeps the core positive definite
        core = probe.T @ shifted
        root = torch.linalg.cholesky((core + core.T) / 2)
        half = torch.linalg.solve_triangular(root, shifted.T, upper=False).T
        basis: Tensor = torch.linalg.svd(half, full_matrices=False).U[:, : self.kept]
        return basis


@torch.no_grad()
def top_directions(model: nn.Module, modules: Iterable[str], tokens: Sequence[int]) -> dict[str, Tensor]:
    """Find the top input directions of linear layers.

    Args:
      model: the base model, in evaluation mode.
      modules: names of linear layers.
      tokens: token ids of public text; the first `TOKENS` are used, in windows of `WINDOW`.

    Returns:
      For every module an orthonormal basis [i, q].
    """
    sketches = {name: _Sketch(int(model.get_submodule(name).in_features)) for name in modules}  # type: ignore[arg-type]
    hooks = [model.get_submodule(name).register_forward_pre_hook(sketch) for name, sketch in sketches.items()]
    device = next(model.parameters()).device
    try:
        for start in range(0, min(len(tokens), TOKENS), WINDOW):
            window = torch.tensor([list(tokens[start : min(start + WINDOW, TOKENS)])], device=device)
            model(input_ids=window, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: sketch.basis() for name, sketch in sketches.items()}
