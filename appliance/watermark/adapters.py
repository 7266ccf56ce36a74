"""Adapters as PEFT stores them, and suspects: an adapter, or a model of which the base is known.

Only `adapter_config.json` and safetensors are read. A suspect is foreign: nothing in it is executed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from appliance.errors import ArtefactMissing, DataInvalid
from appliance.watermark.reference import Reference

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
_PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class Factors:
    """A LoRA adapter: for each module A [r, i], B [o, r] and the scale s of dW = s B A."""

    names: tuple[str, ...]
    a: dict[str, Tensor]
    b: dict[str, Tensor]
    scale: float
    config: dict[str, Any]


def read_adapter(directory: Path) -> Factors:
    """Read the adapter of a directory.

    Raises:
      ArtefactMissing: there is no adapter.
      DataInvalid: it is not a plain LoRA adapter.
    """
    try:
        config = json.loads((directory / CONFIG).read_text())
        state = load_file(directory / WEIGHTS)
    except FileNotFoundError:
        raise ArtefactMissing("there is no adapter here", where=str(directory)) from None
    except (SafetensorError, ValueError):
        raise DataInvalid("the adapter cannot be read", where=str(directory)) from None
    a, b = _side(state, "lora_A"), _side(state, "lora_B")
    if not a or a.keys() != b.keys() or len(a) + len(b) != len(state):
        raise DataInvalid("this is not a plain LoRA adapter on linear layers", where=str(directory))
    for name in a:
        if a[name].ndim != 2 or b[name].ndim != 2 or a[name].shape[0] != b[name].shape[1]:
            raise DataInvalid("the two factors of a layer do not fit each other", where=name)
    return Factors(tuple(sorted(a)), a, b, _scale(config, directory), config)


def _side(state: dict[str, Tensor], side: str) -> dict[str, Tensor]:
    endings = (f".{side}.weight", f".{side}.default.weight")
    return {
        name.removesuffix(ending).removeprefix(_PREFIX): tensor
        for name, tensor in state.items()
        for ending in endings
        if name.endswith(ending)
    }


def _scale(config: Any, directory: Path) -> float:
    try:
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
        scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    except (TypeError, KeyError, ValueError, AttributeError, ZeroDivisionError):
        raise DataInvalid("the adapter states no rank and alpha", where=str(directory / CONFIG)) from None
    if any(config.get(name) for name in ("rank_pattern", "alpha_pattern", "use_dora")):
        raise DataInvalid("adapters with patterns or magnitudes are not supported", where=str(directory / CONFIG))
    return scale


def write_adapter(source: Path, target: Path, a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    """Write an adapter with other factors in the same names, data type and configuration as `source`."""
    state = load_file(source / WEIGHTS)
    for sides, side in ((a, "lora_A"), (b, "lora_B")):
        for name, tensor in sides.items():
            full = f"{_PREFIX}{name}.{side}.weight"
            state[full] = tensor.to(state[full].dtype).contiguous()
    save_file(state, target / WEIGHTS, metadata={"format": "pt"})
    (target / CONFIG).write_bytes((source / CONFIG).read_bytes())


class AdapterSuspect:
    """A suspect adapter: dv = s B A, never formed."""

    def __init__(self, factors: Factors) -> None:
        self._factors = factors

    def products(self, reference: Reference) -> tuple[Tensor, Tensor] | None:
        """See `Suspect.products`."""
        if reference.module not in self._factors.a:
            return None
        a, b = self._factors.a[reference.module].double(), self._factors.b[reference.module].double()
        if (b.shape[0], a.shape[1]) != (reference.outputs, reference.inputs):
            raise DataInvalid("the suspect's layer has another shape than the base model's", where=reference.module)
        scaled = b * self._factors.scale
        return scaled @ (a @ reference.v.double()), a.T @ (scaled.T @ reference.u.double())


class Weights(Protocol):
    """Weights by name, floating point, whatever they are packed in."""

    def find(self, name: str) -> Tensor | None:
        """Find the weight of this name, or None."""


class Tensors:
    """The tensors of a model directory by name, read when they are asked for."""

    def __init__(self, files: list[Any]) -> None:
        self._where = {name: file for file in files for name in file.keys()}  # noqa: SIM118 - not a dict

    def find(self, name: str) -> Tensor | None:
        """Find the tensor of this name, or None."""
        file = self._where.get(name)
        return None if file is None else file.get_tensor(name)


@contextmanager
def open_tensors(directory: Path) -> Iterator[Tensors]:
    """Open the tensors of all safetensors files of a model directory.

    Raises:
      ArtefactMissing: there are none.
      DataInvalid: a file is damaged.
    """
    paths = sorted(directory.glob("*.safetensors"))
    if not paths:
        raise ArtefactMissing("there are no safetensors files here", where=str(directory))
    with ExitStack() as stack:
        try:
            files = [stack.enter_context(safe_open(path, framework="pt")) for path in paths]
        except (SafetensorError, OSError):
            raise DataInvalid("the weights of the model cannot be read", where=str(directory)) from None
        yield Tensors(files)


class ModelSuspect:
    """A suspect model with the same modules as its base: dv = W_suspect - W_base.

    Args:
      suspect: its tensors.
      base: the tensors of the base model.
    """

    def __init__(self, suspect: Weights, base: Weights) -> None:
        self._suspect, self._base = suspect, base

    def products(self, reference: Reference) -> tuple[Tensor, Tensor] | None:
        """See `Suspect.products`. The difference is taken in float32, in which both are exact."""
        name = f"{reference.module}.weight"
        suspect, base = self._suspect.find(name), self._base.find(name)
        if base is None:
            raise DataInvalid("the base model lacks a layer of the reference", where=name)
        if suspect is None:
            return None
        if suspect.shape != base.shape or base.shape != (reference.outputs, reference.inputs):
            raise DataInvalid("the suspect's layer has another shape than the base model's", where=reference.module)
        if not suspect.is_floating_point():
            raise DataInvalid("the suspect is packed; give it dequantised", where=reference.module)
        change = suspect.to(torch.float32) - base.to(torch.float32)
        return (change @ reference.v).double(), (change.T @ reference.u).double()
