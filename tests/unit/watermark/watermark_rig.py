"""Adapters to be marked: stock PEFT on a model, with B filled so that the change looks like a DP-trained one."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from appliance.jobs.lora import LoraSpec
from appliance.train.adapting import adapt
from appliance.train.trained import collect, save_adapter
from appliance.watermark.activations import top_directions
from appliance.watermark.adapters import AdapterSuspect, Factors, read_adapter
from appliance.watermark.detection import Residual, project, score
from appliance.watermark.keys import module_key
from appliance.watermark.reference import Reference
from appliance.watermark.release import Marked, Prepared, embed, prepare

MODEL = "ab" * 32
ROLE = "owner/run_1"
MASTER = bytes(range(32))


def load(directory: Path, dtype: torch.dtype = torch.float32) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()


def write_random_adapter(
    model_dir: Path, target: Path, *, rank: int = 8, share: float = 0.02, seed: int = 3, targets: Any = "all-linear"
) -> Path:
    """An adapter whose dW is random with |dW| = share |W| in every layer; its spectrum is that of noise."""
    adapter = adapt(load(model_dir), LoraSpec(r=rank, alpha=2.0 * rank, targets=targets), 7)
    generator = torch.Generator().manual_seed(seed)
    for site in adapter.sites:
        site.a.data = torch.randn(site.a.shape, generator=generator)
        b = torch.randn(site.b.shape, generator=generator)
        site.b.data = b * share * site.base.weight.norm() / (site.scale * b @ site.a.data).norm()
    target.mkdir(exist_ok=True)
    save_adapter(collect(adapter, 1, 1, private=True), target)
    return target


def with_adapter(model: Any, directory: Path) -> Any:
    """Stock PEFT around a model."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft 0.21 asks transformers 5 by an old name
        return PeftModel.from_pretrained(model, directory)


def key_of(master: bytes = MASTER) -> Any:
    return lambda module: module_key(master, MODEL, ROLE, module)


def prepared(model_dir: Path, adapter_dir: Path) -> tuple[Factors, Prepared]:
    factors, model = read_adapter(adapter_dir), load(model_dir)
    directions = top_directions(model, factors.names, [5 + i * 7 % 250 for i in range(512)])
    return factors, prepare(factors, lambda name: model.get_submodule(name).weight, directions)


def marked(model_dir: Path, adapter_dir: Path, master: bytes = MASTER) -> tuple[Factors, Prepared, Marked]:
    factors, ready = prepared(model_dir, adapter_dir)
    return factors, ready, embed(ready, key_of(master), factors.scale)


def with_factors(factors: Factors, a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> Factors:
    return Factors(factors.names, a, b, factors.scale, factors.config)


def residual_of(factors: Factors, references: tuple[Reference, ...]) -> Residual:
    return project(AdapterSuspect(factors), references)


def score_of(factors: Factors, references: tuple[Reference, ...], master: bytes = MASTER) -> float:
    return score(residual_of(factors, references), key_of(master))
