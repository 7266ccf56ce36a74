"""The loss gradient at the head: pieces of one size, the same bits for a record wherever its tokens lie in them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from appliance.train import loss
from appliance.train.logits import Logits
from appliance.train.loss import find_supervised, hidden_gradient, piece_rows
from tests.unit.train.rig import encoded

WIDTH, VOCABULARY, LENGTH = 48, 300, 24


def head(dtype: torch.dtype) -> nn.Linear:
    generator = torch.Generator().manual_seed(1)
    made = nn.Linear(WIDTH, VOCABULARY, bias=False)
    made.weight.data = (torch.randn(VOCABULARY, WIDTH, generator=generator) * 0.1).to(dtype)
    return made


def states(rows: int, dtype: torch.dtype, seed: int = 2) -> Tensor:
    return torch.randn(rows, LENGTH, WIDTH, generator=torch.Generator().manual_seed(seed)).to(dtype)


def gradient(hidden: Tensor, head: nn.Linear, batch: Any, *, shared: bool = True) -> Tensor:
    rows = hidden.shape[0] * hidden.shape[1]
    return hidden_gradient(hidden, Logits(head), find_supervised(batch, hidden.shape[1], rows, shared=shared))


@pytest.mark.parametrize("shared", [True, False])
def test_it_is_the_gradient_of_each_record_s_own_mean(shared: bool) -> None:
    batch = [encoded(LENGTH, seed, supervised) for seed, supervised in ((1, 3), (2, 20), (3, 1), (4, 12))]
    hidden, made = states(5, torch.float32).requires_grad_(), head(torch.float32)  # one row more than records
    total = sum(
        nn.functional.cross_entropy(made(hidden[row, list(r.positions)]), torch.tensor(r.ids)[1:][list(r.positions)])
        for row, r in enumerate(batch)
    )
    (plain,) = torch.autograd.grad(total, hidden)  # type: ignore[arg-type]
    assert (gradient(hidden, made, batch, shared=shared) - plain).norm() < 1e-6 * plain.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_record_has_the_same_bits_wherever_it_lies_in_a_piece(dtype: torch.dtype) -> None:
    made, record, own = head(dtype), encoded(LENGTH, 9, 7), states(1, dtype, seed=3)
    alone = gradient(own, made, [record])[0]
    assert alone.any()
    step = piece_rows(torch.device("cpu"))
    for before in (1, 5, step - 4, step, 2 * step + 3):  # supervised tokens of the neighbours before it
        counts = [20] * (before // 20) + ([before % 20] if before % 20 else [])
        batch = [*(encoded(LENGTH, n, count) for n, count in enumerate(counts)), record]
        hidden = torch.cat([states(len(counts), dtype, seed=before), own])
        assert torch.equal(gradient(hidden, made, batch)[-1], alone)


def test_pieces_of_as_many_rows_as_there_are_tokens_would_couple(monkeypatch: pytest.MonkeyPatch) -> None:
    # A kernel of its own for few rows, as matrix times vector is: a piece that is not filled up takes it for one token.
    made, record, own = head(torch.float32), encoded(LENGTH, 9, 1), states(1, torch.float32, seed=3)
    product = made.forward

    def sensitive(x: Tensor) -> Tensor:
        return product(x) * (1 + 1e-6 * (len(x) < 4))

    monkeypatch.setattr(made, "forward", sensitive)
    batch = [encoded(LENGTH, 1, 12), record]
    hidden = torch.cat([states(1, torch.float32), own])

    def bits(batch: Any, hidden: Tensor) -> Tensor:
        return gradient(hidden, made, batch)[-1]

    assert torch.equal(bits(batch, hidden), bits([record], own))
    monkeypatch.setattr(loss.functional, "pad", lambda x, _: x)
    assert not torch.equal(bits(batch, hidden), bits([record], own))


def test_nothing_supervised_is_no_gradient() -> None:
    record = encoded(LENGTH, 9, 0)
    assert not record.positions
    assert not gradient(states(1, torch.float32), head(torch.float32), [record]).any()
