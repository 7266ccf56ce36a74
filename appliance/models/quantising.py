"""A base model in NF4 or INT8: quantised while it is read, tensor by tensor, so that the full weights never exist.

bitsandbytes does the arithmetic. The adapter is trained over the dequantised weights, never over quantised
activations: INT8 products pick "outlier" columns from the whole batch, which would make one record's output depend
on another's, so that path is refused (see `appliance.train.lora`).
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from appliance.errors import ArtefactMissing, ConfigInvalid
from appliance.models.loading import HERE_ONLY, check_complete, load_tokenizer
from appliance.models.offline import strict

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Quantisation = Literal["nf4", "int8"]


def load_quantised(
    directory: Path, dtype: torch.dtype, kind: Quantisation, device: str = "cpu"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a directory that `import_model` wrote, its linear layers quantised, frozen, in evaluation mode.

    NF4 is that of Dettmers et al. 2023, "QLoRA": blocks of 64 values, their scales quantised once more. INT8 has one
    scale for each output row. Embedding, norms and output head stay in `dtype`. Weights are read with `pread`,
    one tensor at a time: a memory map would keep every page that was ever read.

    Raises:
      ArtefactMissing, DataInvalid, WillNotFit: as `appliance.models.loading.load`.
      ConfigInvalid: no layer of this model can be quantised.
    """
    if not directory.is_dir():
        raise ArtefactMissing("there is no such model directory", where=str(directory))
    with strict("the model cannot be loaded and quantised", str(directory)), ExitStack() as files:
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(directory, **HERE_ONLY)
        model = quantise(config, _slices(directory, files), dtype, kind, device, where=str(directory))
    return model, load_tokenizer(directory)


def quantise(
    config: Any,
    state: dict[str, Any],
    dtype: torch.dtype,
    kind: Quantisation,
    device: str = "cpu",
    *,
    where: str,
    built: Any = None,
) -> PreTrainedModel:
    """Build a frozen model of these weights, tensors or slices of files, with its linear layers quantised.

    Args:
      config: of the model; it may be changed.
      state: the weights.
      dtype: of all that is not quantised.
      kind: how the rest is.
      device: where it is.
      where: names the model in messages.
      built: its class; None is the one that belongs to the configuration.

    Raises:
      DataInvalid: weights are missing or have another shape than the configuration says.
      ConfigInvalid: no layer of this model can be quantised.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    _silence()
    model, info = (built or MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]).from_pretrained(
        None,
        config=config,
        dtype=dtype,
        state_dict=state,
        quantization_config=_settings(kind, dtype),
        device_map={"": device},
        output_loading_info=True,
        **HERE_ONLY,
    )
    check_complete(info, where)
    if not any(is_quantised(module) for module in model.modules()):
        raise ConfigInvalid("this model has no linear layer that can be quantised", where="lora.quantize_base")
    return model.requires_grad_(False).eval()


def is_quantised(module: torch.nn.Module) -> bool:
    """Tell whether a layer is a bitsandbytes linear layer."""
    import bitsandbytes

    return isinstance(module, (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt))


def _settings(kind: Quantisation, dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _slices(directory: Path, files: ExitStack) -> dict[str, Any]:
    # Slices, not tensors: transformers reads each one when it places it.
    from safetensors import safe_open

    found: dict[str, Any] = {}
    for path in sorted(directory.glob("*.safetensors")):
        opened: Any = files.enter_context(safe_open(path, framework="pt", device="cpu", backend="pread"))
        found |= {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - not a dictionary
    return found


def _silence() -> None:
    # It logs a line for each product, and looks for kernels to download.
    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL + 1)
