"""A model directory as one GGUF file that llama.cpp runs, quantised tensor by tensor with gguf's own arithmetic.

Matrices are quantised in blocks of 32 along a row. Embedding and head stay in Q8_0 in the 4-bit formats, as they lose
most; vectors are float32. The rows of query and key are written in llama.cpp's order, which pairs rotary dimensions
next to each other where transformers pairs halves.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from appliance.errors import ConfigInvalid, DataInvalid
from appliance.models.gguf_rope import FACTORS, llama3_factors
from appliance.models.gguf_tokenizer import add_tokenizer
from appliance.models.loading import HERE_ONLY, load_tokenizer
from appliance.models.offline import strict

Kind = Literal["q8_0", "q4_1", "q4_0"]
NAME = "model.gguf"
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""Models that are written, by `model_type`, and llama.cpp's name for each."""
_PERMUTED = ("llama",)
_COARSE = ("token_embd.weight", "output.weight")
_BLOCK = 32


def write_gguf(merged: Path, kind: Kind, output: Path, name: str, licence: str) -> Path:
    """Write `output/model.gguf` of a model directory.

    Args:
      merged: the directory, in safetensors.
      kind: how matrices are quantised.
      output: an existing directory.
      name: what the file says that it is.
      licence: of the base, as the catalog has it.

    Raises:
      ConfigInvalid: the architecture, or a part of its configuration, is not written to GGUF here.
      DataInvalid: the tokenizer is not one that llama.cpp has a name for, or files cannot be read.
    """
    import gguf

    path = output / NAME
    with strict("the GGUF cannot be written", str(merged)):
        from transformers import AutoConfig

        config: Any = AutoConfig.from_pretrained(merged, **HERE_ONLY)
        architecture = ARCHITECTURES.get(config.model_type)
        if architecture is None:
            known = ", ".join(sorted(ARCHITECTURES))
            raise ConfigInvalid(f"models of type {config.model_type} are not written to GGUF: only {known}")
        writer = gguf.GGUFWriter(path, architecture)
        writer.add_name(name)
        writer.add_license(licence)
        factors = _add_configuration(writer, config)
        add_tokenizer(writer, load_tokenizer(merged), config.vocab_size, str(merged))
        _add_tensors(writer, merged, kind, config, architecture, factors)
    return path


def _add_configuration(writer: Any, config: Any) -> list[float]:
    """State the architecture; returns the factors of rotary scaling, if there are any."""
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        raise ConfigInvalid("a sliding window is not written to GGUF", where="config.json")
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(head_dim)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_quantization_version(2)
    return _add_rope(writer, config, head_dim)


def _add_rope(writer: Any, config: Any, head_dim: int) -> list[float]:
    import gguf

    rope = config.rope_parameters
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    kind = rope.get("rope_type", "default")
    if kind == "llama3":
        return llama3_factors(float(rope["rope_theta"]), head_dim // 2, rope)
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    elif kind != "default":
        raise ConfigInvalid(f"rotary scaling of type {kind} is not written to GGUF", where="config.json")
    return []


def _add_tensors(writer: Any, merged: Path, kind: Kind, config: Any, architecture: str, factors: list[float]) -> None:
    """Announce every tensor, then write them one after the other: no two are in memory at once."""
    import gguf

    files = {"q8_0": gguf.LlamaFileType.MOSTLY_Q8_0, "q4_1": gguf.LlamaFileType.MOSTLY_Q4_1}
    writer.add_file_type(files.get(kind, gguf.LlamaFileType.MOSTLY_Q4_0))
    announced = []
    for name, shape, read in _tensors(merged, config, architecture):
        chosen = _type(name, shape, kind)
        values, size = gguf.GGML_QUANT_SIZES[chosen]
        count = int(np.prod(shape))
        writer.add_tensor_info(name, shape, np.dtype(np.float32), count // values * size, raw_dtype=chosen)
        announced.append((read, chosen))
    if factors:
        stated = np.array(factors, dtype=np.float32)
        writer.add_tensor_info(FACTORS, stated.shape, stated.dtype, stated.nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for read, chosen in announced:
        writer.write_tensor_data(gguf.quantize(read(), chosen))
    if factors:
        writer.write_tensor_data(stated)
    writer.close()


def _type(name: str, shape: tuple[int, ...], kind: Kind) -> Any:
    import gguf

    if len(shape) == 1 or shape[-1] % _BLOCK:
        return gguf.GGMLQuantizationType.F32
    return gguf.GGMLQuantizationType["Q8_0" if name in _COARSE else kind.upper()]


def _tensors(merged: Path, config: Any, architecture: str) -> Iterator[tuple[str, tuple[int, ...], Any]]:
    for path in sorted(merged.glob("*.safetensors")):
        with safe_open(path, framework="pt") as opened:
            shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in sorted(opened.keys())}
        for name, shape in shapes.items():
            if name == "lm_head.weight" and config.tie_word_embeddings:
                continue
            yield gguf_name(name, config, architecture), shape, _Reading(path, name, config, architecture)


def gguf_name(name: str, config: Any, architecture: str) -> str:
    """Find what a GGUF file calls a weight. Raises `DataInvalid` where it has no name for it."""
    import gguf

    arch = next(one for one, called in gguf.MODEL_ARCH_NAMES.items() if called == architecture)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    found: str | None = names.get_name(name, try_suffixes=(".weight", ".bias"))
    if found is None:
        raise DataInvalid(f"a GGUF has no name for the weight {name!r}")
    return found


class _Reading:
    """Reads one weight, float32, in llama.cpp's order."""

    def __init__(self, path: Path, name: str, config: Any, architecture: str) -> None:
        self._path, self._name = path, name
        self._heads = heads_of(name, config) if architecture in _PERMUTED else 0

    def __call__(self) -> NDArray[np.float32]:
        with safe_open(self._path, framework="pt") as opened:
            weight: NDArray[np.float32] = opened.get_tensor(self._name).float().numpy()
        return pair_neighbours(weight, self._heads) if self._heads else weight


def heads_of(name: str, config: Any) -> int:
    """Count the heads of a query or key projection; 0 for every other weight."""
    if ".q_proj." in name:
        return int(config.num_attention_heads)
    return int(config.num_key_value_heads) if ".k_proj." in name else 0


def pair_neighbours(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Order rows as llama.cpp pairs rotary dimensions: (0, 1), (2, 3); transformers pairs (0, d/2), (1, d/2 + 1)."""
    half = weight.shape[0] // heads // 2
    return np.ascontiguousarray(weight.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(weight.shape))


def pair_halves(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Undo `pair_neighbours`."""
    half = weight.shape[0] // heads // 2
    return np.ascontiguousarray(weight.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(weight.shape))


def is_permuted(architecture: str) -> bool:
    """Tell whether files of this architecture hold query and key in llama.cpp's order."""
    return architecture in _PERMUTED
