"""The result of a run: a stock PEFT adapter, and the counts that are published with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from safetensors.torch import save_file
from torch import Tensor

from appliance.errors import GateFailed
from appliance.train.lora import Adapter


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained adapter.

    Attributes:
      state: PEFT's names to float32 tensors on the CPU.
      config: the content of adapter_config.json.
      steps: applied steps.
      attempts: attempts that the journal charges.
      trainable_parameters: P.
      private: false when a test replaced sampler or noise; such an adapter cannot be saved.
    """

    state: dict[str, Tensor]
    config: dict[str, Any]
    steps: int
    attempts: int
    trainable_parameters: int
    private: bool


def collect(adapter: Adapter, steps: int, attempts: int, *, private: bool) -> Trained:
    """Collect the adapter as it is now, in PEFT's names."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(adapter.peft_model, save_embedding_layers=False)
    return Trained(
        state={name: tensor.detach().float().cpu().contiguous() for name, tensor in state.items()},
        config=_config(adapter),
        steps=steps,
        attempts=attempts,
        trainable_parameters=adapter.parameters,
        private=private,
    )


def save_adapter(trained: Trained, directory: Path, base: str | None = None) -> None:
    """Write adapter_model.safetensors and adapter_config.json as PEFT reads them, with no path of this machine.

    Args:
      trained: the adapter.
      directory: where it is written.
      base: the base model's name in the catalog; without one PEFT would ask a hub for a model called "None".

    Raises:
      GateFailed: when the adapter was trained with a test's sampler or noise.
    """
    if not trained.private:
        raise GateFailed("an adapter trained without secret sampling and noise is not released")
    save_file(trained.state, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    named = {**trained.config, "base_model_name_or_path": base}
    config = orjson.dumps(named, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE)
    (directory / "adapter_config.json").write_bytes(config)


def _config(adapter: Adapter) -> dict[str, Any]:
    raw = adapter.peft_model.peft_config["default"].to_dict()
    config = {key: sorted(value) if isinstance(value, set) else value for key, value in raw.items()}
    return {**config, "base_model_name_or_path": None, "inference_mode": True}
