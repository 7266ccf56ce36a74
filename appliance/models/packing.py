"""A model in INT8 or NF4 of bitsandbytes, as safetensors that transformers opens by itself."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from appliance.models.loading import HERE_ONLY, load_tokenizer
from appliance.models.offline import strict
from appliance.models.quantising import Quantisation, load_quantised

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_REWRITTEN = ("config.json", "generation_config.json", "model.safetensors.index.json")


def pack(merged: Path, kind: Quantisation, output: Path) -> None:
    """Quantise the linear layers of a model directory; embedding, norms and head are stored in bfloat16.

    Raises:
      ConfigInvalid: no layer of this model can be quantised.
      DataInvalid, WillNotFit: as `appliance.models.loading.load`.
    """
    model, _ = load_quantised(merged, torch.bfloat16, kind)
    with strict("the quantised model cannot be written", str(merged)):
        model.save_pretrained(output)
    for path in sorted(merged.iterdir()):
        if path.suffix != ".safetensors" and path.name not in _REWRITTEN:
            shutil.copyfile(path, output / path.name)


def open_packed(directory: Path, device: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Open what `pack` wrote, as anybody who is given it does. Raises as `pack`."""
    with strict("the quantised model cannot be opened", str(directory)):
        from transformers import AutoModelForCausalLM

        model: Any = AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.bfloat16, device_map={"": device}, **HERE_ONLY
        )
    return model.requires_grad_(False).eval(), load_tokenizer(directory)
