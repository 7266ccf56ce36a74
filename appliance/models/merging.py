"""An adapter merged into its base: W + s B A for every adapted layer, file by file, every other byte as it was.

The sum is taken in float32 and rounded once, to the precision in which the base is stored.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from appliance.errors import DataInvalid

_BLOCK, _LEVELS, _MOST = 32, 16, 0.9
_FEW = 4  # layers that are looked at


def merge(base: Path, factors: Mapping[str, tuple[Tensor, Tensor]], scale: float, output: Path) -> int:
    """Write the base with an adapter merged into it.

    Args:
      base: a directory that `import_model` wrote.
      factors: A [r, in] and B [out, r] of each adapted layer.
      scale: s.
      output: an empty directory.

    Returns:
      How many weights there are, each stored one once.

    Raises:
      DataInvalid: the adapter does not fit the base.
    """
    left, count = set(factors), 0
    for path in sorted(base.iterdir()):
        if path.suffix != ".safetensors":
            shutil.copyfile(path, output / path.name)
            continue
        tensors: dict[str, Tensor] = {}
        with safe_open(path, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a dictionary
                layer = name.removesuffix(".weight")
                tensors[name] = _merged(opened.get_tensor(name), factors.get(layer), scale, name)
                left.discard(layer)
                count += tensors[name].numel()
        save_file(tensors, output / path.name, metadata={"format": "pt"})
    if left:
        raise DataInvalid(f"the adapter has a layer that the base does not store: {min(left)}", where=str(base))
    return count


def _merged(weight: Tensor, pair: tuple[Tensor, Tensor] | None, scale: float, name: str) -> Tensor:
    if pair is None:
        return weight
    a, b = (factor.float() for factor in pair)
    if tuple(weight.shape) != (b.shape[0], a.shape[1]):
        raise DataInvalid("the adapter does not fit the base model", where=name)
    return (weight.float() + scale * (b @ a)).to(weight.dtype).contiguous()


def is_four_bit(base: Path, layers: Mapping[str, Any]) -> bool:
    """Tell whether weights were quantised to 4 bits before: 16 values at most in nearly every block of 32 in a row."""
    looked = sorted(layers)[:: max(1, len(layers) // _FEW)][:_FEW]
    few = all_ = 0
    for path in sorted(base.glob("*.safetensors")):
        with safe_open(path, framework="pt") as opened:
            for name in set(opened.keys()) & {f"{layer}.weight" for layer in looked}:
                weight = opened.get_tensor(name)[:64].float()
                blocks = weight[:, : weight.shape[1] // _BLOCK * _BLOCK].reshape(-1, _BLOCK).sort(dim=1).values
                levels = (blocks.diff(dim=1) != 0).sum(dim=1) + 1
                few, all_ = few + int((levels <= _LEVELS).sum()), all_ + len(levels)
    return all_ > 0 and few >= _MOST * all_
