"""Opening an imported model: always offline, never with code of its publisher, always complete."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from appliance.errors import ArtefactMissing, DataInvalid
from appliance.models.foreign_json import read_object
from appliance.models.keys import check_keys
from appliance.models.offline import strict
from appliance.models.stored import DERIVED, check_numbers, find_stored, tie
from appliance.models.unread import weights_unread

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROBLEMS = (
    ("missing_keys", "is missing"),
    ("mismatched_keys", "has another shape than configured"),
    ("unexpected_keys", "is stored, but the configured model does not use it"),
)
NUMBERS = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size"),
    *("intermediate_size", "max_position_embeddings", "kv_lora_rank", "q_lora_rank", "qk_rope_head_dim"),
    *("qk_nope_head_dim", "v_head_dim", "n_routed_experts", "num_experts", "num_local_experts"),
    *("num_experts_per_tok", "moe_intermediate_size", "first_k_dense_replace"),
)
"""What the estimates take of a configuration, as transformers' attribute map names it for every architecture."""

HERE_ONLY = {"local_files_only": True, "trust_remote_code": False}


@dataclass(frozen=True, slots=True)
class Structure:
    """What a model directory holds, found without reading its weights.

    Attributes:
      architecture: class of the model, such as "LlamaForCausalLM".
      parameters: number of parameters, shared ones counted once.
      shapes: (out_features, in_features) of every `nn.Linear` of the decoder and of the head, by module name.
      has_chat_template: whether the tokenizer brings a chat template.
      numbers: those of `NUMBERS` that the configuration states, under one name whatever its own for them is.
    """

    architecture: str
    parameters: int
    shapes: dict[str, tuple[int, int]]
    has_chat_template: bool
    numbers: dict[str, int]


def load(directory: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a directory that `import_model` wrote, on the CPU, in evaluation mode, with no parameter trainable.

    Raises:
      ArtefactMissing: there is no such directory.
      DataInvalid: weights are missing or have another shape than the configuration says, or files cannot be read.
      WillNotFit: memory does not suffice.
    """
    return load_model(directory, dtype), load_tokenizer(directory)


def load_model(directory: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Load the model alone; see `load`."""
    # A parameter that transformers keeps in float32 whatever it is asked (a router bias) stays what it is.
    return _from_pretrained(directory, dtype=dtype).requires_grad_(False).eval()


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model directory; raises like `load`."""
    with strict("the tokenizer cannot be loaded", str(directory)):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(directory, **HERE_ONLY)
        if tokenizer.eos_token_id is None:
            _mend_end(tokenizer, directory)
        return tokenizer


def _mend_end(tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Give a tokenizer without an end token the one that the model's configuration names: a text must end in it.

    Raises:
      DataInvalid: the configuration names one that the tokenizer does not have.
    """
    from transformers import AutoConfig

    stated = AutoConfig.from_pretrained(directory, **HERE_ONLY).get_text_config(decoder=True).eos_token_id
    generation = directory / "generation_config.json"
    if stated is None and generation.exists():
        stated = read_object(generation).get("eos_token_id")
    if stated is None:
        return
    ends = [tokenizer.convert_ids_to_tokens(end) for end in (stated if isinstance(stated, list) else [stated])]
    known = [end for end in ends if end is not None]
    if not known:
        raise DataInvalid(
            "the configuration names an end token that the tokenizer does not have",
            hint="set eos_token in a copy of tokenizer_config.json",
            where=str(directory),
        )
    tokenizer.eos_token = known[0]


def _check_end(tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Refuse an end token that only the tokenizer's configuration knows: its embedding was never trained."""
    vocabulary = directory / "tokenizer.json"
    if not vocabulary.exists() or tokenizer.eos_token is None:
        return
    from tokenizers import Tokenizer

    with strict("the tokenizer cannot be loaded", str(directory)):
        known = Tokenizer.from_file(str(vocabulary)).get_vocab(with_added_tokens=True)
    if tokenizer.eos_token not in known:
        raise DataInvalid(
            "the configuration names an end token that the tokenizer does not have",
            hint="set eos_token in a copy of tokenizer_config.json",
            where=str(directory),
        )


def inspect(directory: Path) -> Structure:
    """Build the model without memory for its weights, matching every weight on disk by name and shape.

    Raises:
      DataInvalid: as `load`; also when a weight is stored twice, in different values or as whole numbers, when the
        configuration says what the model does not do, or the tokenizer makes tokens that the embedding does not have.
    """
    model = _from_pretrained(directory, weights_unread, dtype="auto", device_map="meta")
    stored = find_stored(directory)
    check_numbers(stored, model)
    tie(stored, model)
    check_keys(read_object(directory / "config.json"), model)
    tokenizer = load_tokenizer(directory)
    _check_end(tokenizer, directory)
    rows = model.get_input_embeddings().weight.shape[0]
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if not 0 <= largest < rows:
        raise DataInvalid(f"the tokenizer goes up to token {largest}, the embedding has {rows}", where=str(directory))
    linear = _linear_layers(model)
    return Structure(
        architecture=type(model).__name__,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        shapes={name: (module.out_features, module.in_features) for name, module in linear.items()},
        has_chat_template=bool(tokenizer.chat_template),
        numbers=_numbers(model.config.get_text_config(decoder=True)),
    )


def _numbers(config: Any) -> dict[str, int]:
    found = {name: getattr(config, name, None) for name in NUMBERS}
    return {name: value for name, value in found.items() if type(value) is int and value >= 0}


def _linear_layers(model: Any) -> dict[str, nn.Linear]:
    """List the linear layers of the decoder, not of what sees or hears, and the head, as training does."""
    inside, head = {id(module) for module in model.get_decoder().modules()}, model.get_output_embeddings()
    linear = ((name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear))
    return {name: module for name, module in linear if id(module) in inside or module is head}


def _from_pretrained(
    directory: Path, reading: Callable[[], AbstractContextManager[None]] = nullcontext, **options: Any
) -> PreTrainedModel:
    if not directory.is_dir():
        raise ArtefactMissing("there is no such model directory", where=str(directory))
    with strict("the model cannot be loaded", str(directory)):
        from transformers import AutoModelForCausalLM

        with _nothing_ignored() as unused, reading():
            model, info = AutoModelForCausalLM.from_pretrained(
                directory, use_safetensors=True, output_loading_info=True, **HERE_ONLY, **options
            )
    check_complete({**info, "unexpected_keys": unused}, str(directory))
    return model


@contextmanager
def _nothing_ignored() -> Iterator[set[str]]:
    """Collect, while models are loaded, every tensor of the files that they do not take.

    transformers drops some of them by patterns that its authors wrote for one checkpoint, before it says which.
    """
    from transformers import PreTrainedModel

    adjust, unused = PreTrainedModel._adjust_missing_and_unexpected_keys, set[str]()

    def note(self: PreTrainedModel, loading_info: Any) -> None:
        unused.update(key for key in loading_info.unexpected_keys if not _is_derived(self, key))
        adjust(self, loading_info)

    PreTrainedModel._adjust_missing_and_unexpected_keys = note
    try:
        yield unused
    finally:
        PreTrainedModel._adjust_missing_and_unexpected_keys = adjust


def _is_derived(model: PreTrainedModel, key: str) -> bool:
    """Tell whether a stored tensor is known to change nothing: a constant, or a part that only guesses ahead."""
    if re.search(DERIVED, key):
        return True
    config: Any = model.config.get_text_config()
    ahead = getattr(config, "num_nextn_predict_layers", None) or 0
    layer = re.search(r"(?:^|\.)layers\.(\d+)\.", key)
    declared = layer is not None and 0 <= int(layer[1]) - config.num_hidden_layers < ahead
    return declared or re.match(r"(model\.)?mtp\.", key) is not None


def check_complete(info: dict[str, Any], where: str) -> None:
    """Refuse what transformers only warns of: parameters that were made up, and stored tensors that are not used.

    Raises:
      DataInvalid: naming the first of them.
    """
    for kind, problem in PROBLEMS:
        found = sorted(str(key[0] if isinstance(key, tuple) else key) for key in info[kind])
        if found:
            raise DataInvalid(f"the weight {found[0]!r} {problem} ({len(found)} in all)", where=where)
    if info["error_msgs"]:
        raise DataInvalid("the weights do not fit the configuration", where=where)
