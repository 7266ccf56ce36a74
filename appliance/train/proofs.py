"""What is proved on synthetic records at the start of every run, on the very model that will be trained.

No private record is touched, so what these proofs decide (which row counts a micro-batch may have) is public.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from appliance.errors import GateFailed
from appliance.train.coupling import LENGTHS, recall, synthetic, uncouple
from appliance.train.encode import Encoded
from appliance.train.engine import Engine
from appliance.train.engines import Ranks
from appliance.train.lora import Adapter
from appliance.train.optimizer import ExactDPOptimizer
from appliance.train.rows import RowCounts

# Relative error of a record's norm and of its whole gradient. In float32 both grow with depth: SmolLM2 (30 layers) has
# 4e-6 and 1e-5, as much as plain autograd has against float64. In bfloat16 the oracle computes LoRA in float32, and a
# token may be routed to another expert.
_TOLERANCE = {torch.float32: (3e-5, 3e-4), torch.bfloat16: (0.1, 0.2)}


def prove(engine: Engine, lengths: Collection[int] = LENGTHS, known: RowCounts | None = None) -> RowCounts:
    """Prove the per-record gradients exact, and that no record's gradient depends on another record.

    Args:
      engine: its `counts` are set to what was proved.
      lengths: every bucket that a record of the run can have.
      known: what was proved before for the same shapes on the same machine; it is not proved again.

    Raises:
      GateFailed: per-record gradients differ from plain autograd, or are not the same when they are computed again.
      ConfigInvalid: the model remembers records that it has seen.
      WillNotFit: memory does not hold the longest record.
    """
    with random_b(engine.adapter):
        prove_exact(engine)
        if known is not None and recall(engine, known, lengths):
            return known
        return uncouple(engine, lengths)


def prove_alike(engine: Engine, lengths: Collection[int], ranks: Ranks, known: RowCounts | None = None) -> None:
    """Prove as `prove` does, and that every rank has the same row counts and bits.

    Raises:
      GateFailed: a proof fails, or a rank has other bits than the first.
    """
    proved = prove(engine, lengths, known)
    ranks.agree(torch.tensor(list(proved.digest()), dtype=torch.uint8), "the same gradients")


def prove_exact(engine: Engine) -> None:
    """Compare per-record gradients with plain autograd through the model's own forward, one record at a time."""
    generator = torch.Generator().manual_seed(1)
    length = 16
    batch = [synthetic(engine, length, length - n, generator) for n in range(min(3, engine.most_rows(length)))]
    fast = engine.gradients(batch, physical=len(batch)).clone()
    dtype = engine.precision
    norms, wholes = [], []
    for record, row in zip(batch, fast, strict=True):
        plain = reference_gradient(engine.adapter, record)
        norms.append(float((row.norm() - plain.norm()).abs() / plain.norm()))
        wholes.append(float((row[: len(plain)] - plain).norm() / plain.norm()))
    for errors, bound in zip((norms, wholes), _TOLERANCE[dtype], strict=True):
        # In bfloat16 the middle one counts: rounding may send one record's token to another expert, but not most.
        error = max(errors) if dtype == torch.float32 else sorted(errors)[len(errors) // 2]
        if not error <= bound:
            raise GateFailed("the per-record gradients differ from plain automatic differentiation")


def reference_gradient(adapter: Adapter, record: Encoded) -> Tensor:
    """Compute the gradient of one unpadded record by plain PEFT and autograd: the oracle of the engine, float32 [P]."""
    ids = torch.tensor([record.ids], device=adapter.sites[0].a.device)
    layers = [adapter.model.get_submodule(site.name) for site in adapter.sites]
    try:
        for layer in layers:
            del layer.forward  # PEFT's own forward again
        model: Any = adapter.model
        logits = model(input_ids=ids, use_cache=False).logits[0].float()
        positions = torch.tensor(record.positions, device=ids.device)
        loss = functional.cross_entropy(logits[positions], ids[0, positions + 1])
        gradients = torch.autograd.grad(loss, adapter.trainable)
    finally:
        for site, layer in zip(adapter.sites, layers, strict=True):
            layer.forward = site.forward
    return adapter.flatten(gradients)


def prove_moved(adapter: Adapter, optimizer: ExactDPOptimizer, before: Tensor) -> None:
    """Prove after the first step that the optimiser holds the model's own tensors, and every one of them has moved.

    Args:
      adapter: the trained adapter.
      optimizer: the optimiser that stepped.
      before: the flat weights before the step.
    """
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    trainable = {id(p) for p in adapter.model.parameters() if p.requires_grad}
    if held != trainable or trainable != {id(p) for p in adapter.trainable}:
        raise GateFailed("the optimiser does not hold the model's own trainable tensors")
    for parameter, old in adapter.views(before):
        if torch.equal(parameter.detach(), old):
            raise GateFailed("an adapter weight did not move in the first step")


@contextmanager
def random_b(adapter: Adapter) -> Iterator[None]:
    """Give every B random values for the length of the block, and zeros after it.

    With B = 0 the gradient of A is zero, and half of what is to be shown would be vacuous.
    """
    generator = torch.Generator().manual_seed(3)
    try:
        for site in adapter.sites:
            random = torch.randn(site.b.shape, generator=generator) * 0.02
            site.b.data.copy_(random)
        yield
    finally:
        for site in adapter.sites:
            site.b.data.zero_()
