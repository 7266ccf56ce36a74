"""One base model and several adapters on it, switched between forward passes: the base is loaded once.

The adapters are read from stock PEFT directories. A layer computes x W^T, and with an adapter in use adds
s (x A^T) B^T in the precision of the model, as the training engine does; with none in use it runs the base's own code,
so the base's losses are bit for bit those of the base.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from appliance.errors import ConfigInvalid, DataInvalid

_PREFIX, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True, slots=True)
class _Pair:
    a: Tensor  # [r, in]
    b: Tensor  # [out, r]
    scale: float


class _Layer:
    """A linear layer whose forward looks up which adapter is in use."""

    def __init__(self, variants: Variants, linear: nn.Linear) -> None:
        self._variants = variants
        self._base = linear.forward
        self.pairs: dict[str, _Pair] = {}

    def forward(self, x: Tensor) -> Tensor:
        y = self._base(x)
        pair = self.pairs.get(self._variants.used or "")
        if pair is not None:
            u = functional.linear(x, pair.a)
            y.view(-1, y.shape[-1]).addmm_(u.view(-1, u.shape[-1]), pair.b.t(), alpha=pair.scale)
        return y


class Variants:
    """A model with adapters that can be switched.

    Args:
      model: the base, a causal language model in evaluation mode; its linear layers are changed in place.

    Attributes:
      model: the same model.
      used: name of the adapter in use, or None for the base.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.used: str | None = None
        self._layers: dict[str, _Layer] = {}
        self._names: list[str] = []

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters, in the order in which they were attached."""
        return tuple(self._names)

    def attach(self, name: str, directory: Path) -> None:
        """Make the adapter in `directory` known as `name`.

        Raises:
          DataInvalid: the files are not a LoRA adapter of this model.
          ConfigInvalid: the adapter has parts that are not measured here.
        """
        scale = _scale(directory)
        tensors = _tensors(directory)
        modules: dict[str, Any] = dict(self.model.named_modules())
        for target in sorted({key.removesuffix(_A).removesuffix(_B) for key in tensors}):
            a, b = tensors.get(target + _A), tensors.get(target + _B)
            linear: Any = modules.get(target.removeprefix(_PREFIX))
            if a is None or b is None or not _fits(linear, a, b):
                raise DataInvalid("the adapter does not fit the base model", where=str(directory))
            weight = linear.weight
            pair = _Pair(a.to(weight.device, weight.dtype), b.to(weight.device, weight.dtype), scale)
            self._layer(target, linear).pairs[name] = pair
        self._names.append(name)

    def use(self, name: str | None) -> None:
        """Switch to an adapter, or to the base with None."""
        if name is not None and name not in self._names:
            raise ConfigInvalid("there is no adapter of that name")
        self.used = name

    def _layer(self, target: str, linear: Any) -> _Layer:
        if target not in self._layers:
            self._layers[target] = _Layer(self, linear)
            linear.forward = self._layers[target].forward
        return self._layers[target]


def _fits(linear: Any, a: Tensor, b: Tensor) -> bool:
    if not isinstance(linear, nn.Linear) or a.ndim != 2 or b.ndim != 2:
        return False
    return (b.shape[0], a.shape[1]) == tuple(linear.weight.shape) and a.shape[0] == b.shape[1]


def _scale(directory: Path) -> float:
    try:
        config = orjson.loads((directory / "adapter_config.json").read_bytes())
        kind, alpha, rank = config["peft_type"], float(config["lora_alpha"]), int(config["r"])
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        raise DataInvalid("not a PEFT adapter", where=str(directory)) from None
    extras = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save", "lora_bias")
    if kind != "LORA" or rank < 1 or any(config.get(extra) for extra in extras):
        raise ConfigInvalid("only plain LoRA adapters are measured", where=str(directory))
    return alpha / rank


def _tensors(directory: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(directory / "adapter_model.safetensors")
    except (OSError, SafetensorError):
        raise DataInvalid("the adapter cannot be read", where=str(directory)) from None
    if not tensors or any(not key.startswith(_PREFIX) or not key.endswith((_A, _B)) for key in tensors):
        raise DataInvalid("the adapter holds other tensors than LoRA's", where=str(directory))
    return tensors
