"""Puts LoRA on a base model: which layers, a deterministic start, and what is refused with a reason."""

from __future__ import annotations

import math
import sys
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from appliance.errors import ConfigInvalid
from appliance.jobs.lora import LoraSpec
from appliance.train.lora import Adapter, Site, is_quantised


def adapt(model: Any, spec: LoraSpec, init_seed: int) -> Adapter:
    """Freeze the model and put a LoRA adapter with B = 0 on it, the same for the same seed.

    Args:
      model: a `PreTrainedModel` with a language-model head, changed in place; its base stays as it is.
      spec: rank, alpha and targets.
      init_seed: seeds the start of the A matrices and nothing else.

    Raises:
      ConfigInvalid: for targets or models whose per-record gradients would not be exact.
    """
    with _without_bitsandbytes():
        from peft import LoraConfig, get_peft_model

    names = target_names(model, spec)
    _refuse(model, spec, names)
    model.eval().requires_grad_(False)
    config = LoraConfig(
        r=spec.r,
        lora_alpha=spec.alpha,
        lora_dropout=0.0,
        bias="none",
        target_modules=_short_names(model, names),
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings(), _taken_literally(model.config), _without_bitsandbytes():
        warnings.simplefilter("ignore", FutureWarning)  # peft 0.21 asks transformers 5 by an old name
        peft_model = get_peft_model(model, config)
    peft_model.eval()
    for module in model.modules():
        if is_quantised(module):
            # In evaluation mode bitsandbytes repacks NF4 weights in place and quantises activations for INT8.
            module.training = True
    sites: list[Site] = []
    for name in names:
        offset = sites[-1].end if sites else 0
        sites.append(Site(name, len(sites), model.get_submodule(name), offset, spec.freeze_a))
    _initialise(sites, init_seed)
    for site in sites:
        model.get_submodule(site.name).forward = site.forward
    adapter = Adapter(model=model, peft_model=peft_model, sites=tuple(sites))
    _check_calls(adapter)
    return adapter


@contextmanager
def _without_bitsandbytes() -> Iterator[None]:
    # A quantised base has loaded it by now. For any other, importing it costs PEFT two seconds of every worker: it
    # brings torch's compiler along and looks for kernels of its own. PEFT remembers what it found, so it must forget.
    absent = "bitsandbytes" not in sys.modules
    if absent:
        sys.modules["bitsandbytes"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if absent:
            del sys.modules["bitsandbytes"]
            from peft import import_utils

            import_utils.is_bnb_available.cache_clear()
            import_utils.is_bnb_4bit_available.cache_clear()


@contextmanager
def _taken_literally(config: Any) -> Iterator[None]:
    # For mixture-of-experts models peft 0.21 turns gate_proj, up_proj and down_proj of every layer into the fused
    # parameters of the routed experts, dropping the dense and shared layers that were meant. It goes by model type.
    kind = config.model_type
    try:
        config.model_type = "taken-literally"
        yield
    finally:
        config.model_type = kind


def target_names(model: nn.Module, spec: LoraSpec) -> list[str]:
    """Name in full the linear layers that `spec.targets` means, in the model's own order; see `LoraSpec.choose`."""
    linear = linear_layers(model)
    if not any(map(spec.selects, linear)) and any(type(m).__name__ == "Conv1D" for m in model.modules()):
        raise ConfigInvalid("the layers of this model are of type Conv1D, which is not supported", where="base")
    names = spec.choose(linear)
    head = model.get_output_embeddings()  # type: ignore[operator]
    for name in names:
        if linear[name] is head:
            raise ConfigInvalid(f"the output head of this model is called {name}, which is not known", where="base")
    return names


def linear_layers(model: Any) -> dict[str, nn.Module]:
    """List the linear layers that can be adapted by name: of the decoder, not of what sees or hears, and the head."""
    inside, head = {id(module) for module in model.get_decoder().modules()}, model.get_output_embeddings()
    linear = ((name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear))
    return {name: module for name, module in linear if id(module) in inside or module is head}


def _short_names(model: nn.Module, names: list[str]) -> list[str]:
    # PEFT matches by suffix and other tools expect short names; full names where the short ones would match more.
    short = sorted({name.rsplit(".", 1)[-1] for name in names})
    matched = {n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.rsplit(".", 1)[-1] in short}
    return short if matched == set(names) else names


def _refuse(model: Any, spec: LoraSpec, names: list[str]) -> None:
    if hasattr(model, "peft_config"):
        raise ConfigInvalid("the base model already carries an adapter", where="base")
    if getattr(model.config, "output_router_logits", False):
        raise ConfigInvalid("a router's auxiliary loss couples records", where="base")
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        raise ConfigInvalid("batch normalisation couples records", where="base")
    _refuse_shared(model, names)
    for name in names:
        layer = model.get_submodule(name)
        if not _is_known(layer):
            raise ConfigInvalid(f"{name} is not a linear layer in float32, bfloat16, NF4 or INT8", where="lora.targets")
        if spec.r > min(layer.in_features, layer.out_features):
            raise ConfigInvalid(f"rank {spec.r} is larger than a dimension of {name}", where="lora.r")


def _is_known(layer: Any) -> bool:
    if is_quantised(layer):
        return True
    return layer.weight.dtype in (torch.float32, torch.bfloat16) and (type(layer) is nn.Linear or _is_linear(layer))


@torch.no_grad()
def _is_linear(layer: Any) -> bool:
    """Tell whether a layer of a model's own class, such as Falcon's, computes x W^T + b all the same."""
    x = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(6)).to(layer.weight)
    try:
        ours, theirs = nn.functional.linear(x, layer.weight, layer.bias), layer(x)
    except (RuntimeError, TypeError):
        return False
    return isinstance(theirs, Tensor) and theirs.shape == ours.shape and torch.allclose(ours, theirs, rtol=1e-2)


def _refuse_shared(model: nn.Module, names: list[str]) -> None:
    owners: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(parameter.data_ptr(), set()).add(name)
    for name in names:
        weight = model.get_submodule(name).weight
        if len(owners[weight.data_ptr()]) > 1:  # type: ignore[operator]
            raise ConfigInvalid(f"the weight of {name} is tied to another layer", where="lora.targets")


def _initialise(sites: list[Site], init_seed: int) -> None:
    generator = torch.Generator().manual_seed(init_seed)
    for site in sites:
        start = torch.empty(site.a.shape)
        nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
        site.a.data = start.to(site.a.device)
        site.b.data = torch.zeros(site.b.shape, device=site.b.device)
        site.a.requires_grad_(not site.freeze_a)


@torch.no_grad()
def _check_calls(adapter: Adapter) -> None:
    # A layer that runs twice in one pass would overwrite its first report; one that does not run would report never.
    calls = [0] * len(adapter.sites)

    def counting(site: Site) -> Any:
        def forward(_: nn.Module, x: Tensor) -> Tensor:
            calls[site.index] += 1
            return site.forward(x)

        return forward

    layers = [adapter.model.get_submodule(site.name) for site in adapter.sites]
    try:
        for site, layer in zip(adapter.sites, layers, strict=True):
            layer.forward = types.MethodType(counting(site), layer)
        ids = torch.zeros(1, 8, dtype=torch.long, device=adapter.sites[0].a.device)
        if ids.is_meta:  # without numbers nothing is trained: such a model is only measured
            return
        body(adapter.model)(input_ids=ids, use_cache=False)
    finally:
        for site, layer in zip(adapter.sites, layers, strict=True):
            layer.forward = site.forward
    for site in adapter.sites:
        if calls[site.index] != 1:
            raise ConfigInvalid(f"{site.name} runs {calls[site.index]} times per forward pass", where="lora.targets")


def body(model: Any) -> nn.Module:
    """Find the model without its head: token ids in, last hidden states out.

    Raises:
      ConfigInvalid: when the model does not separate the two.
    """
    decoder: nn.Module = model.get_decoder()
    if decoder is model or model.get_output_embeddings() is None:
        raise ConfigInvalid("the model has no separate language-model head", where="base")
    return decoder
