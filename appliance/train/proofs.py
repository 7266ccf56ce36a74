"""What is proved on synthetic records at the start of every run, on the very model that will be trained.

No private record is touched, so what these proofs decide (whether micro-batches need a fixed row count) is public.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from appliance.errors import GateFailed
from appliance.train.encode import Encoded
from appliance.train.engine import Engine
from appliance.train.lora import Adapter
from appliance.train.optimizer import ExactDPOptimizer

# Relative error of a record's norm and of its whole gradient. In float32 both grow with depth: SmolLM2 (30 layers) has
# 4e-6 and 1e-5, as much as plain autograd has against float64. In bfloat16 the oracle computes LoRA in float32, and a
# token may be routed to another expert.
_TOLERANCE = {torch.float32: (3e-5, 3e-4), torch.bfloat16: (0.1, 0.2)}
_LENGTHS = (16, 64)
_PROOF_TOKENS = 512
_NEIGHBOURS = (1, 2, 5)


def prove(engine: Engine) -> None:
    """Exactness of the per-record gradients, and that no record's clipped gradient depends on another record.

    Where the kernels' results for a row depend on how many rows there are, `engine.fixed_rows` is set to the first
    of 4 and 1 that makes them independent.

    Raises:
      GateFailed: when per-record gradients differ from plain autograd, or records couple even one at a time.
    """
    with _random_b(engine.adapter):
        prove_exact(engine)
        for fixed in (None, 4, 1):
            engine.fixed_rows = fixed
            if not coupled(engine):
                return
    raise GateFailed("a record's gradient depends on its neighbours, even with one record at a time")


def prove_exact(engine: Engine) -> None:
    """Compares per-record gradients with plain autograd through the model's own forward, one record at a time."""
    generator = torch.Generator().manual_seed(1)
    length = 16
    batch = [_record(engine, length, length - n, generator) for n in range(min(3, engine.rows_at(length)))]
    fast = engine.gradients(batch).clone()
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
    """The gradient of one unpadded record by plain PEFT and autograd: the oracle of the engine, float32 [P]."""
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


def coupled(engine: Engine) -> bool:
    """Whether any synthetic record's clipped, rounded gradient changes with neighbours, row or row count.

    A record is computed alone, then among different numbers of neighbours with itself in the first and in the last
    row, then alone again: the same work has to give the same bits. Few of its tokens are supervised, and of its
    neighbours' another number, so that a loss that counts tokens over the batch shows.
    """
    generator = torch.Generator().manual_seed(2)
    for length in _LENGTHS:
        record = _record(engine, length, length - 3, generator, supervised=3)
        alone: Tensor | None = None
        counts = sorted({min(n, engine.rows_at(length)) for n in (*_NEIGHBOURS, engine.rows_at(length))})
        for rows in (*counts, 1):
            if rows * length > _PROOF_TOKENS:
                continue
            batch = [_record(engine, length, length, generator, supervised=5) for _ in range(rows)]
            own = {0, rows - 1} if rows > 2 else {rows - 1}
            for position in own:
                batch[position] = record
            for clipped in _clipped(engine, batch, own):
                if alone is not None and not torch.equal(alone, clipped):
                    return True
                alone = clipped
    return False


def prove_moved(adapter: Adapter, optimizer: ExactDPOptimizer, before: Tensor) -> None:
    """After the first step: the optimiser holds the model's own tensors, and every one of them has moved.

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


def _clipped(engine: Engine, batch: list[Encoded], positions: set[int]) -> list[Tensor]:
    rows = engine.gradients(batch)
    factors = engine.sum.factors(rows)
    return [(rows[position] * factors[position, None]).round_() for position in positions]


def _record(
    engine: Engine, length: int, tokens: int, generator: torch.Generator, supervised: int | None = None
) -> Encoded:
    vocabulary = engine.adapter.model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    ids = torch.randint(0, vocabulary, (tokens,), generator=generator).tolist()
    first = tokens // 3 if supervised is None else tokens - 1 - supervised
    return Encoded(tuple(ids), tuple(range(first, tokens - 1)), length)


@contextmanager
def _random_b(adapter: Adapter) -> Iterator[None]:
    # With B = 0 the gradient of A is zero and half of what is to be proved would be vacuous.
    generator = torch.Generator().manual_seed(3)
    try:
        for site in adapter.sites:
            random = torch.randn(site.b.shape, generator=generator) * 0.02
            site.b.data.copy_(random)
        yield
    finally:
        for site in adapter.sites:
            site.b.data.zero_()
