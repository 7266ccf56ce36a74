"""Attention weights of a model on one prompt, and whether they say what mattered: a deletion test.

Attention is no explanation by itself. So the roll-up (Abnar and Zuidema 2020: layers multiplied, each mixed with the
residual) orders the tokens, the most important ones are deleted, and the drop in the likelihood of what had been
predicted is compared with that of random orders and of gradient times input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_SHARE = 0.2  # of the tokens is deleted
_ROWS = 16
SMALL = 32
"""Rows and columns of the picture of a single head at most."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Attention weights of one prompt, float32.

    Attributes:
      heads: [layers, heads, tokens, tokens]; each row sums to 1.
      predicted: the likeliest next token.
    """

    heads: Tensor
    predicted: int

    @property
    def row_error(self) -> float:
        """By how much a row differs from 1 at most."""
        return float((self.heads.sum(dim=-1) - 1).abs().max())

    def rollup(self) -> Tensor:
        """Multiply the layers, each half of itself and half of the residual: [tokens, tokens], rows sum to 1."""
        size = self.heads.shape[-1]
        total = torch.eye(size)
        for layer in self.heads.mean(dim=1):
            total = (layer + torch.eye(size)) / 2 @ total
        return total


@torch.inference_mode()
def look(body: Any, logits: Callable[[Tensor], Tensor], ids: Sequence[int]) -> Weights:
    """Run a model once over a prompt, with the implementation that gives its weights."""
    read = torch.tensor([ids], device=body.get_input_embeddings().weight.device)
    out = body(input_ids=read, use_cache=False, output_attentions=True)
    heads = torch.stack([layer[0].float().cpu() for layer in out.attentions])
    return Weights(heads, int(logits(out.last_hidden_state[:, -1])[0].argmax()))


def pixels(weights: Tensor, most: int | None = None) -> Tensor:
    """Make a picture, uint8: the square root of each weight; blocks are averaged where there are more than `most`."""
    if most is not None and weights.shape[-1] > most:
        weights = torch.nn.functional.adaptive_avg_pool2d(weights[None], most)[0]
        weights = weights / weights.max().clamp(min=1e-9)
    return (weights.clamp(0, 1).sqrt() * 255).round().to(torch.uint8)


@dataclass(frozen=True, slots=True)
class Drops:
    """Drop of the log-likelihood, in nat, by the order in which a fifth of the tokens was deleted."""

    attention: float
    gradient: float
    random: tuple[float, ...]

    @property
    def p(self) -> float:
        """How rarely a random order does as much as the attention's, counted with the attention itself."""
        return (1 + sum(one >= self.attention for one in self.random)) / (1 + len(self.random))


def delete(
    body: Any, logits: Callable[[Tensor], Tensor], ids: Sequence[int], weights: Weights, orders: int, seed: int = 0
) -> Drops:
    """Delete the most important tokens by several orders. The first and the last token stay: text begins and ends.

    Args:
      body: of the model.
      logits: of the model.
      ids: the prompt.
      weights: of the prompt.
      orders: how many random ones.
      seed: of these; the same prompt gives the same figures.
    """
    inner = torch.arange(1, len(ids) - 1)
    generator = torch.Generator().manual_seed(seed)
    by_attention = inner[weights.rollup()[-1][inner].argsort(descending=True)]
    by_gradient = inner[_gradient(body, logits, ids, weights.predicted)[inner].argsort(descending=True)]
    shuffled = [inner[torch.randperm(len(inner), generator=generator)] for _ in range(orders)]
    ways = [by_attention, by_gradient, *shuffled]
    whole = _log_likelihood(body, logits, torch.tensor([ids]), weights.predicted)[0]
    count = max(1, round(_SHARE * len(inner)))
    kept = torch.stack([_without(ids, way[:count]) for way in ways])
    drops = whole - _log_likelihood(body, logits, kept, weights.predicted)
    return Drops(float(drops[0]), float(drops[1]), tuple(map(float, drops[2:])))


def _without(ids: Sequence[int], deleted: Tensor) -> Tensor:
    keep = torch.ones(len(ids), dtype=torch.bool)
    keep[deleted] = False
    return torch.tensor(ids)[keep]


@torch.inference_mode()
def _log_likelihood(body: Any, logits: Callable[[Tensor], Tensor], ids: Tensor, token: int) -> Tensor:
    device = body.get_input_embeddings().weight.device
    found = []
    for rows in torch.split(ids, _ROWS):
        states = body(input_ids=rows.to(device), use_cache=False).last_hidden_state[:, -1]
        found.append(torch.log_softmax(logits(states).float(), dim=-1)[:, token].cpu())
    return torch.cat(found)


def _gradient(body: Any, logits: Callable[[Tensor], Tensor], ids: Sequence[int], token: int) -> Tensor:
    """Multiply the gradient of the log-likelihood by the input, summed over the embedding's width: [tokens]."""
    embedding = body.get_input_embeddings()
    read = embedding(torch.tensor([ids], device=embedding.weight.device)).detach().requires_grad_(True)
    states = body(inputs_embeds=read, use_cache=False).last_hidden_state[:, -1]
    torch.log_softmax(logits(states).float(), dim=-1)[0, token].backward()  # type: ignore[no-untyped-call]
    assert read.grad is not None  # noqa: S101 - it has just been computed
    change: Tensor = (read.grad * read.detach()).sum(dim=-1)[0]
    return change.abs().float().cpu()
