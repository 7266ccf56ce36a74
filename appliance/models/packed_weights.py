"""The weights of a model as it is distributed, whatever they are packed in: plain, INT8 or NF4, or a GGUF file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from appliance.errors import ArtefactMissing, DataInvalid
from appliance.models.gguf_file import read_header
from appliance.models.gguf_writing import ARCHITECTURES, gguf_name, heads_of, is_permuted, pair_halves
from appliance.models.loading import HERE_ONLY
from appliance.models.offline import strict

_NF4 = ".quant_state.bitsandbytes__nf4"


class Weights:
    """Weights by transformers' names, each unpacked when it is asked for."""

    def find(self, name: str) -> Tensor | None:
        """Find a weight, floating point, or None where there is none of this name."""
        raise NotImplementedError


@contextmanager
def open_weights(directory: Path, base: Path) -> Iterator[Weights]:
    """Open the weights of a model directory, or of the GGUF file in it.

    Args:
      directory: foreign; nothing in it is executed.
      base: the base model's directory, whose configuration says how its heads are counted.

    Raises:
      ArtefactMissing: there are no weights.
      DataInvalid: they are damaged, or it cannot be told which of them are meant.
    """
    found = sorted(directory.glob("*.gguf"))
    if len(found) > 1 or (found and any(directory.glob("*.safetensors"))):
        raise DataInvalid(
            "there are two sets of weights here, or parts of one",
            hint="give the one that is meant, in one file",
            where=str(directory),
        )
    with ExitStack() as stack:
        if found:
            yield _InGguf(found[0], base)
            return
        paths = sorted(directory.glob("*.safetensors"))
        if not paths:
            raise ArtefactMissing("there are no weights here", where=str(directory))
        try:
            yield _InSafetensors([stack.enter_context(safe_open(path, framework="pt")) for path in paths])
        except (SafetensorError, OSError):
            raise DataInvalid("the weights of the model cannot be read", where=str(directory)) from None


def _by_name(files: list[Any]) -> dict[str, Any]:
    """Find the open file of every tensor.

    Raises:
      DataInvalid: two files have one of the same name: which of them an engine takes cannot be told.
    """
    found: dict[str, Any] = {}
    for file in files:
        for name in file.keys():  # noqa: SIM118 - not a dictionary
            if name in found:
                raise DataInvalid("a tensor is in two of the files: which one is meant cannot be told", where=name)
            found[name] = file
    return found


class _InSafetensors(Weights):
    def __init__(self, files: list[Any]) -> None:
        self._where = _by_name(files)

    def find(self, name: str) -> Tensor | None:
        if name not in self._where:
            return None
        stem = name.removesuffix(".weight")
        if f"{stem}.SCB" in self._where:
            return self._read(name).float() * self._read(f"{stem}.SCB").float()[:, None] / 127
        return self._nf4(name) if f"{name}{_NF4}" in self._where else self._read(name)

    def _read(self, name: str) -> Tensor:
        tensor: Tensor = self._where[name].get_tensor(name)
        return tensor

    def _nf4(self, name: str) -> Tensor:
        from bitsandbytes.functional import QuantState, dequantize_4bit

        parts = {part.removeprefix(f"{name}."): self._read(part) for part in self._where if part.startswith(f"{name}.")}
        with strict("the packed weights cannot be read", name):
            state = QuantState.from_dict(parts, device=torch.device("cpu"))
            unpacked: Tensor = dequantize_4bit(self._read(name), state)
        return unpacked.float()


class _InGguf(Weights):
    def __init__(self, path: Path, base: Path) -> None:
        read_header(path)  # every bound is checked before the library reads it
        with strict("the GGUF cannot be read", path.name):
            from gguf import GGUFReader
            from transformers import AutoConfig

            self._config: Any = AutoConfig.from_pretrained(base, **HERE_ONLY)
            self._tensors = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
        self._architecture = ARCHITECTURES.get(self._config.model_type)
        if self._architecture is None:
            raise DataInvalid(f"GGUF files of {self._config.model_type} are not read here", where=path.name)

    def find(self, name: str) -> Tensor | None:
        from gguf import dequantize

        architecture = str(self._architecture)
        tensor = self._tensors.get(gguf_name(name, self._config, architecture))
        if tensor is None:
            return None
        with strict("the GGUF cannot be read", name):
            weight = np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        heads = heads_of(name, self._config) if is_permuted(architecture) else 0
        return torch.from_numpy(pair_halves(weight, heads) if heads else weight)
