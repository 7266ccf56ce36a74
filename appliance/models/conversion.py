"""GGUF in, safetensors out, without changing a single weight or losing one, or any key (`gguf_keys`).

The stored dtype is the smallest that holds every dequantised value exactly. Quantised files need float32: of the
values of SmolLM2-135M in Q4_1 bfloat16 holds 21 % and float16 58 % exactly, so the float32 file (538 MB) is kept
although a bfloat16 one takes half and costs little (0.0003 nat per token on 8401 tokens of English): an import that
changes nothing can be checked bit for bit. Files written in bfloat16 or float16 keep their type.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from appliance.errors import ArtefactMissing, DataInvalid
from appliance.models import gguf_keys, gguf_rope
from appliance.models.extent import check_extent
from appliance.models.gguf_file import GgufHeader, read_header
from appliance.models.loading import HERE_ONLY, check_complete, load_tokenizer
from appliance.models.offline import strict

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HINT = "import the model's safetensors directory instead"
SHARD_SIZE = "4GB"
# Pre-tokenizers of byte-level BPE: text is cut by GPT-2's expression, for the second set after single digits.
GPT2_SPLIT = ("default", "gpt-2")
DIGITS_THEN_GPT2_SPLIT = ("smollm", "starcoder")


def convert(source: Path, output: Path) -> GgufHeader:
    """Write the model and the tokenizer of a GGUF file into the directory `output`.

    Returns:
      The checked header of the file.

    Raises:
      ArtefactMissing: the file has no tokenizer, or is one part of several.
      DataInvalid: the file is damaged, transformers does not know its architecture, weights are missing, or its
        tokenizer would cut text differently from the original.
      WillNotFit: memory or disk does not suffice.
    """
    header = read_header(source)
    check_extent(header.metadata, len(header.tensors), source.name)
    if header.metadata.get("split.count", 1) not in (0, 1):
        raise ArtefactMissing("one part of a GGUF that was split", hint="merge the parts first", where=source.name)
    if "tokenizer.ggml.tokens" not in header.metadata:
        raise ArtefactMissing("there is no tokenizer in the GGUF", hint=HINT, where=source.name)
    # By its descriptor, beside which nothing lies: transformers reads tokenizer and generation settings that lie beside
    # a GGUF. A link alone in a directory would do as well, but in the sandbox no link can be made.
    with source.open("rb") as opened, strict("cannot be converted", source.name, HINT):
        alone = Path("/proc/self/fd", str(opened.fileno()))
        tokenizer = _tokenizer(alone, header, source.name)
        model = _without_quantisation(_dequantise(alone, header, source.name))
        model.save_pretrained(output, max_shard_size=SHARD_SIZE)
        tokenizer.save_pretrained(output)
        _drop_invented_tokens(output / "tokenizer.json", header.metadata["tokenizer.ggml.tokens"])
    _check_tokenizer(load_tokenizer(output), header, source.name)
    return header


def smallest_exact_dtype(tensors: Iterable[torch.Tensor]) -> torch.dtype:
    """Choose the first of bfloat16 and float16 that represents every value of all tensors exactly, else float32."""
    fitting = [torch.bfloat16, torch.float16]
    for tensor in tensors:
        fitting = [dtype for dtype in fitting if torch.equal(tensor.to(dtype).to(tensor.dtype), tensor)]
    return fitting[0] if fitting else torch.float32


def _dequantise(source: Path, header: GgufHeader, where: str) -> PreTrainedModel:
    from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig

    config = AutoConfig.from_pretrained(source.parent, gguf_file=source.name, **HERE_ONLY)
    gguf_keys.apply(header.metadata, config, where)
    if gguf_rope.FACTORS in header.tensors:
        gguf_rope.apply_factors(config, _read_factors(source), where)
    model, info = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        config=config,
        dtype=torch.float32,
        # Without it transformers looks for packed kernels, which it would have to download.
        quantization_config=GgufConfig(dequantize=True),
        output_loading_info=True,
        **HERE_ONLY,
    )
    check_complete(info, where)
    _check_all_used(model, header, where)
    return model


def _read_factors(source: Path) -> list[float]:
    from gguf import GGUFReader, dequantize

    tensor = next(tensor for tensor in GGUFReader(source).tensors if tensor.name == gguf_rope.FACTORS)
    return [float(value) for value in dequantize(tensor.data, tensor.tensor_type).reshape(-1)]


def _check_all_used(model: PreTrainedModel, header: GgufHeader, where: str) -> None:
    """Refuse a file of which a tensor was dropped: no weight is missing, so the numbers of values differ then.

    Raises:
      DataInvalid: naming the tensor where its name shows that it is the one.
    """
    stored = {name: values for name, values in header.values.items() if name != gguf_rope.FACTORS}
    loaded = {id(parameter): parameter.numel() for parameter in model.parameters()}
    loaded |= {id(buffer): buffer.numel() for _, buffer in _stored_buffers(model)}
    if sum(stored.values()) == sum(loaded.values()):
        return
    unknown = sorted(name for name in stored if name not in _known_names(model))
    hint = "import the model's safetensors directory instead"
    named = f"the GGUF's tensor {unknown[0]!r} ({len(unknown)} in all)" if unknown else "a tensor of the GGUF"
    raise DataInvalid(f"{named} would be lost", hint=hint, where=where)


def _stored_buffers(model: PreTrainedModel) -> Iterable[tuple[str, torch.Tensor]]:
    kept = model.state_dict(keep_vars=True)
    return [(name, buffer) for name, buffer in model.named_buffers() if name in kept]


def _known_names(model: PreTrainedModel) -> set[str]:
    """List the names that a GGUF gives the model's own tensors, as far as its one table of them goes."""
    from transformers.modeling_gguf_pytorch_utils import TensorProcessor, get_gguf_hf_weights_map

    try:
        return set(get_gguf_hf_weights_map(model, TensorProcessor(config=model.config.to_dict())))
    except NotImplementedError:
        return set()


def _without_quantisation(model: PreTrainedModel) -> PreTrainedModel:
    """Put the same weights into a model that does not remember the GGUF it came from."""
    from transformers import AutoModelForCausalLM

    config, state = model.config, model.state_dict()
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.name_or_path = ""
    dtype = smallest_exact_dtype(state.values())
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config, dtype=dtype)
    plain.load_state_dict({name: tensor.to(dtype) for name, tensor in state.items()}, assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    return plain


def _tokenizer(source: Path, header: GgufHeader, where: str) -> PreTrainedTokenizerBase:
    from tokenizers import pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    # Not AutoTokenizer: it would read the whole file once more, for a class that the saved files do not need.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(source.parent, gguf_file=source.name, **HERE_ONLY)
    if header.metadata.get("tokenizer.ggml.model") != "gpt2":
        return tokenizer
    kind = header.metadata.get("tokenizer.ggml.pre", "default")
    if kind in DIGITS_THEN_GPT2_SPLIT:
        digits = pre_tokenizers.Digits(individual_digits=True)
        gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, gpt2])
    elif kind not in GPT2_SPLIT and kind not in GGUF_PRE_TOKENIZER_SPLITS:
        # transformers would fall back to GPT-2's expression without a word.
        raise DataInvalid(f"the GGUF's pre-tokenizer {kind!r} cannot be rebuilt", hint=HINT, where=where)
    return tokenizer


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, header: GgufHeader, where: str) -> None:
    """Hold the tokenizer that was written to what the file says of it."""
    bare = tokenizer.convert_ids_to_tokens(tokenizer("a", add_special_tokens=False)["input_ids"])
    ids = tokenizer("a")["input_ids"]
    does = {
        "add_bos_token": tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id,
        "add_eos_token": tokenizer.eos_token_id is not None and ids[-1] == tokenizer.eos_token_id,
        "add_space_prefix": bare[0][:1] in ("\u2581", "\u0120"),
    }
    for name, done in does.items():
        if header.metadata.get(f"tokenizer.ggml.{name}", done) != done:
            raise DataInvalid(f"the GGUF's key 'tokenizer.ggml.{name}' would be lost", hint=HINT, where=where)


def _drop_invented_tokens(path: Path, vocabulary: int) -> None:
    """Remove special tokens that transformers adds after the GGUF's own: the embedding has no row for them."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    fields["added_tokens"] = [token for token in fields["added_tokens"] if token["id"] < vocabulary]
    path.write_text(json.dumps(fields, ensure_ascii=False, indent=2), encoding="utf-8")
