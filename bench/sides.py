"""The sides of the training benchmark: our engine, plain PEFT, Opacus with hooks and with ghost norms.

Each is built from the same base (a directory, or what makes a model) in the same dtype, adapts the same layers at the
same rank and takes a list of encoded records of one padded length. All compute logits at the supervised positions only,
in one dtype: plain PEFT's adapter weights are in the base's dtype too, which is faster than its default. A step ends
where a logical step would go on with the next micro-batch: no side's optimiser or noise is in it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import appliance.train.engine as engine_module
from appliance.jobs.job import EngineOptions
from appliance.jobs.lora import LoraSpec
from appliance.models.loading import load
from appliance.train.adapting import adapt, target_names
from appliance.train.encode import Encoded
from appliance.train.engine import Engine
from appliance.train.proofs import prove
from tests.unit.train.rig import plan

Batch = list[Encoded]
Losses = Callable[[Any, Batch], Tensor]
Base = Path | Callable[[str], Any]
"""A model directory, or what makes a new model in a dtype that is given by name."""
ROOM = {"cpu": 1 << 31, "cuda": 1 << 33}  # the gradient buffer holds any micro-batch: both sides compute equal ones


def opened(base: Base, dtype: str, device: str) -> Any:
    """The base model of a side, its own to change."""
    model = load(base, getattr(torch, dtype))[0] if isinstance(base, Path) else base(dtype)
    return model.to(device)


@contextmanager
def as_engine(device: str, repeatable: bool = True) -> Iterator[None]:
    """Within the block a GPU computes as the engine sets it, or with `repeatable` false as torch's users have it."""
    if device == "cpu":
        yield
        return
    products = torch.backends.cuda.matmul
    before = torch.are_deterministic_algorithms_enabled(), products.allow_bf16_reduced_precision_reduction
    torch.use_deterministic_algorithms(repeatable)
    products.allow_bf16_reduced_precision_reduction = not repeatable
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        products.allow_bf16_reduced_precision_reduction = before[1]


class Ours:
    """The engine: forward, backward, norms, clip and exact sum."""

    def __init__(self, base: Base, dtype: str, targets: Any, device: str, tokens: int, **options: Any) -> None:
        spec = LoraSpec(r=options.pop("r", 8), targets=targets, freeze_a=options.pop("freeze_a", False))
        self.adapter = adapt(opened(base, dtype, device), spec, 1)
        random_b(site.b for site in self.adapter.sites)
        rows = options.pop("rows", 256)
        options = {
            "physical_tokens": tokens,
            "gradient_bytes": ROOM[device],
            "cuda_graphs": device == "cuda",
            **options,
        }
        self.options = EngineOptions(dtype=dtype, device=device, **options)  # type: ignore[arg-type]
        self.prepare(rows, tokens)

    def prepare(self, rows: int, tokens: int) -> None:
        """Takes a new engine, for micro-batches of at most so many rows and tokens."""
        self.drop()
        engine_module._MAX_ROWS = rows
        options = self.options.model_copy(update={"physical_tokens": tokens})
        self.engine = Engine(self.adapter, plan(clipping="normalised"), options, 0)

    def drop(self) -> None:
        """Lets go of the memory of the engine, until `prepare`."""
        self.adapter.bind(None)
        self.engine: Any = None

    def prove(self, lengths: Iterable[int]) -> None:
        """Proves the row counts of these padded lengths, as at the start of a run; they are used from then on."""
        prove(self.engine, sorted(set(lengths)))
        random_b(site.b for site in self.adapter.sites)

    def step(self, batch: Batch) -> None:
        with as_engine(self.options.device):
            self.engine.accumulate([[record] for record in batch])


class Plain:
    """Stock PEFT LoRA, its gradient accumulated by autograd. The mean over records of their mean losses."""

    def __init__(self, base: Base, dtype: str, targets: Any, device: str, **_: Any) -> None:
        self.peft, self.model = peft_model(base, dtype, targets, device)

    def drop(self) -> None:
        """Lets go of the gradients."""
        self.peft.zero_grad(set_to_none=True)

    def prepare(self, rows: int, tokens: int) -> None:
        """Nothing depends on the sizes."""

    def step(self, batch: Batch) -> None:
        with as_engine(self.model.device.type, repeatable=False):
            record_losses(self.model, batch).mean().backward()


class Hooks:
    """Opacus' default engine: per-sample gradients by hooks, then clip and sum."""

    def __init__(
        self, base: Base, dtype: str, targets: Any, device: str, losses: Losses | None = None, **_: Any
    ) -> None:
        peft, self.model = peft_model(base, dtype, targets, device)
        self.losses = losses or record_losses
        self.wrapped, self.optimizer, *_rest = private(peft, "hooks", self.losses)

    def loss(self, batch: Batch) -> Any:
        return self.losses(self.model, batch).mean()

    def step(self, batch: Batch) -> None:
        with as_engine(self.model.device.type, repeatable=False):
            self.loss(batch).backward()
            self.optimizer.clip_and_accumulate()
        for parameter in self.optimizer.params:
            parameter.grad_sample = None


class Ghost:
    """Opacus' ghost clipping: norms without gradients, then a second backward pass."""

    def __init__(
        self, base: Base, dtype: str, targets: Any, device: str, losses: Losses | None = None, **_: Any
    ) -> None:
        peft, self.model = peft_model(base, dtype, targets, device)
        self.wrapped, self.optimizer, self.criterion, _loader = private(peft, "ghost", losses or record_losses)

    def loss(self, batch: Batch) -> Any:
        return self.criterion(self.model, batch)

    def step(self, batch: Batch) -> None:
        with as_engine(self.model.device.type, repeatable=False):
            self.loss(batch).backward()
            self.optimizer.accumulate()
            self.optimizer.zero_grad()


def random_b(weights: Any) -> None:
    """As in the middle of training: with B = 0 the gradient of A would be zero."""
    generator = torch.Generator().manual_seed(3)
    for weight in weights:
        weight.data.copy_(torch.randn(weight.shape, generator=generator) * 0.02)


def peft_model(base: Base, dtype: str, targets: Any, device: str) -> tuple[Any, Any]:
    """Stock PEFT on the base, and the base with the adapter in it, in training mode as its users have it."""
    from peft import LoraConfig, get_peft_model

    model = opened(base, dtype, device).requires_grad_(False)
    names = sorted({name.rsplit(".", 1)[-1] for name in target_names(model, LoraSpec(targets=targets))})
    config = LoraConfig(r=8, lora_alpha=16, target_modules=names, task_type="CAUSAL_LM")
    peft = get_peft_model(model, config, autocast_adapter_dtype=False)
    for name, parameter in peft.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(model.dtype)
    random_b(parameter for name, parameter in peft.named_parameters() if "lora_B" in name)
    return peft.train(), model


def record_losses(model: Any, batch: Batch) -> Tensor:
    """Each record's mean loss over its supervised tokens, [rows]; logits at those positions only."""
    ids, mask = padded(batch, model.device)
    hidden = model.get_decoder()(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    rows = torch.tensor([row for row, record in enumerate(batch) for _ in record.positions], device=ids.device)
    positions = torch.tensor([p for record in batch for p in record.positions], device=ids.device)
    counts = torch.tensor([len(record.positions) for record in batch], device=ids.device)
    logits = model.get_output_embeddings()(hidden[rows, positions]).float()
    losses = functional.cross_entropy(logits, ids[rows, positions + 1], reduction="none")
    return torch.zeros(len(batch), device=ids.device).index_add(0, rows, losses / counts[rows])


def stock_losses(model: Any, batch: Batch) -> Tensor:
    """The same from the model as its users call it: logits at every position."""
    ids, mask = padded(batch, model.device)
    labels = torch.full_like(ids, -100)
    for row, record in enumerate(batch):
        at = torch.tensor(record.positions, device=ids.device)
        labels[row, at] = ids[row, at + 1]
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()
    losses = functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=-100)
    return losses.sum(1) / (labels != -100).sum(1)


def padded(batch: Batch, device: Any) -> tuple[Tensor, Tensor | None]:
    """Token ids padded to the longest, and the attention mask where anything is padded."""
    length = max(len(record.ids) for record in batch)
    ids = torch.zeros(len(batch), length, dtype=torch.long)
    for row, record in enumerate(batch):
        ids[row, : len(record.ids)] = torch.tensor(record.ids)
    whole = all(len(record.ids) == length for record in batch)
    lengths = torch.tensor([len(record.ids) for record in batch])[:, None]
    return ids.to(device), None if whole else (torch.arange(length)[None] < lengths).long().to(device)


class PerRecordLoss:
    """Losses of records in the shape that Opacus wants of a criterion."""

    reduction = "mean"

    def __init__(self, losses: Losses) -> None:
        self.losses = losses

    def __call__(self, model: Any, batch: Batch) -> Tensor:
        return self.losses(model, batch)


def private(peft: nn.Module, mode: str, losses: Losses) -> tuple[Any, ...]:
    """Opacus' `make_private` on stock PEFT, with a loader that is not used."""
    from opacus import PrivacyEngine

    optimizer = torch.optim.AdamW([p for p in peft.parameters() if p.requires_grad], lr=1e-4, weight_decay=0.0)
    loader = torch.utils.data.DataLoader(range(8), batch_size=4)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tuple(
            PrivacyEngine().make_private(
                module=peft,
                optimizer=optimizer,
                criterion=PerRecordLoss(losses),
                data_loader=loader,
                noise_multiplier=1.0,
                max_grad_norm=1.0,
                poisson_sampling=False,
                grad_sample_mode=mode,
            )
        )
