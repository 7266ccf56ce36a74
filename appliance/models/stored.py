"""What stored weights are: each there once, numbers that training can start from, and finite.

Libraries that load models do not look: they make floating point of packed integers, take one of two tensors of the same
name, and carry a number that is none into every gradient, which then counts as zero while the budget is spent.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from appliance.errors import DataInvalid
from appliance.models.safetensors_file import StoredTensor, data_start, read_header

DERIVED = r"rotary_emb\.inv_freq$|(^|\.)position_ids$|\.(attn|attention)\.(bias|masked_bias)$"
"""Stored constants that every model computes by itself: rotary frequencies, positions, causal masks of GPT-2's time."""

_EXPONENTS = {
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7F80_0000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
}
"""How the bits of each dtype lie, and those of the exponent: all are set in what is infinite or no number."""
_PIECE = 16 << 20  # bytes


class Stored(NamedTuple):
    """A tensor and the file that it is in."""

    file: Path
    tensor: StoredTensor


def find_stored(directory: Path) -> dict[str, Stored]:
    """Find every tensor of the safetensors files in a directory, by its name.

    Raises:
      DataInvalid: two of them have the same name; which one a library takes is chance.
    """
    found: dict[str, Stored] = {}
    for file in sorted(directory.glob("*.safetensors")):
        for name, tensor in read_header(file).items():
            if name in found:
                raise DataInvalid(f"tensor {name!r} is in {found[name].file.name} too", where=file.name)
            found[name] = Stored(file, tensor)
    return found


def check_numbers(stored: Mapping[str, Stored], model: Any) -> None:
    """Refuse whole numbers and floats of eight bits where the model computes: their scales are not known.

    Args:
      stored: all tensors of the model.
      model: as transformers builds it; it may be without memory.

    Raises:
      DataInvalid: naming the first.
    """
    # By their last words: what files call the layers, libraries may rename.
    counted = {name.split(".")[-1] for name, tensor in model.state_dict().items() if not tensor.is_floating_point()}
    for name, (file, tensor) in stored.items():
        constant = re.search(DERIVED, name) or name.split(".")[-1] in counted
        if tensor.dtype not in _EXPONENTS and not constant:
            raise DataInvalid(
                f"the weight {name!r} is stored as {tensor.dtype}: quantised already, and no start for training",
                hint="import the model's bfloat16 or float32 weights",
                where=file.name,
            )


def check_finite(stored: Mapping[str, Stored]) -> None:
    """Refuse a weight that is infinite or no number.

    Raises:
      DataInvalid: naming the first.
    """
    for name, (file, tensor) in stored.items():
        kind, ones = _EXPONENTS.get(tensor.dtype, ("", 0))
        if not kind or re.search(DERIVED, name):
            continue
        for piece in _read(file, tensor):
            bits = np.frombuffer(piece, kind)
            if np.any((bits & bits.dtype.type(ones)) == ones):
                hint = "the file is damaged, or training it went wrong: take it from its source again"
                raise DataInvalid(f"the weight {name!r} holds what is no finite number", hint=hint, where=file.name)


def tie(stored: Mapping[str, Stored], model: Any) -> None:
    """Make one parameter of those that the configuration calls one, where both are stored.

    Raises:
      DataInvalid: they differ. Some libraries take both, others drop one: each would have another model.
    """
    for one, other in getattr(model, "all_tied_weights_keys", {}).items():
        if model.get_parameter(one) is model.get_parameter(other):
            continue
        pair = [_find(stored, name) for name in (one, other)]
        if None not in pair and not _are_equal(*pair):  # type: ignore[arg-type]
            raise DataInvalid(
                f"{one!r} and {other!r} are one weight by the configuration, and stored with different values",
                hint="in a copy set tie_word_embeddings to false, or delete the one that is not meant",
                where="config.json",
            )
    model.tie_weights()


def _find(stored: Mapping[str, Stored], name: str) -> Stored | None:
    return next((found for key, found in stored.items() if _ends_alike(key, name)), None)


def _ends_alike(one: str, other: str) -> bool:
    """Tell whether one name is the other, or the other with a prefix: files and models differ in those."""
    return f".{one}".endswith(f".{other}") or f".{other}".endswith(f".{one}")


def _are_equal(one: Stored, other: Stored) -> bool:
    if (one.tensor.dtype, one.tensor.shape) != (other.tensor.dtype, other.tensor.shape):
        return False
    pieces = itertools.zip_longest(_read(*one), _read(*other))
    return all(a == b for a, b in pieces)


def _read(file: Path, tensor: StoredTensor) -> Iterator[bytes]:
    with file.open("rb") as stream:
        stream.seek(data_start(stream) + tensor.begin)
        left = tensor.end - tensor.begin
        while left and (piece := stream.read(min(left, _PIECE))):
            left -= len(piece)
            yield piece
