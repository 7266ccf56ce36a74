"""The mark itself: what it changes, what it leaves alone, and that stock PEFT reads the result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from appliance.errors import DataInvalid, GateFailed
from appliance.watermark.activations import directions_of, top_directions
from appliance.watermark.adapters import read_adapter, write_adapter
from appliance.watermark.embedding import mark, measure_turn
from appliance.watermark.keys import signs
from appliance.watermark.reference import Complement, Reference, complements, decompose
from tests.unit.watermark.watermark_rig import (
    key_of,
    load,
    marked,
    prepared,
    with_adapter,
    with_factors,
    write_random_adapter,
)


@pytest.fixture(scope="module")
def adapter(built_once: Callable[[str, Callable[[Path], None]], Path], tiny_model_dir: Path) -> Path:
    return built_once("watermark-adapter", lambda d: write_random_adapter(tiny_model_dir, d) and None)


def reference(outputs: int = 60, inputs: int = 80, rank: int = 4, live: int = 4, seed: int = 1) -> Reference:
    generator = torch.Generator().manual_seed(seed)
    b = torch.randn(outputs, rank, generator=generator)
    b[:, live:] = 0
    a = torch.randn(rank, inputs, generator=generator)
    p = torch.linalg.qr(torch.randn(inputs, 8, generator=generator)).Q
    return decompose("m", a, b, 2.0, p)


def test_the_decomposition_is_the_change() -> None:
    generator = torch.Generator().manual_seed(1)
    b, a = torch.randn(60, 4, generator=generator), torch.randn(4, 80, generator=generator)
    one = decompose("m", a, b, 2.0, torch.zeros(80, 0))
    dense = torch.linalg.svd(2.0 * b.double() @ a.double())
    assert torch.allclose(one.s.double(), dense.S[:4], rtol=1e-6)
    assert torch.allclose((one.u * one.s) @ one.v.T, 2.0 * b @ a, atol=1e-4)


def test_the_turn_is_orthogonal_to_the_pairs_and_to_the_top_inputs() -> None:
    one = reference()
    a, b = mark(one, bytes(32), 0.1, 2.0)
    root = one.s.double().sqrt()
    left, right = complements(one)
    du, dv = b.double() * 2.0 / root - one.u.double(), a.double().T / root - one.v.double()
    assert float((one.u.double().T @ du).abs().max()) < 1e-6
    assert float((one.v.double().T @ dv).abs().max()) < 1e-6
    assert float((one.p.double().T @ dv).abs().max()) < 1e-6
    y, x = signs(bytes(32), 60, 80, 4)
    step = 0.1 / (60 + 80) ** 0.5
    assert torch.allclose(du, step * left(y), atol=1e-6)
    assert torch.allclose(dv, step * right(x), atol=1e-6)


def test_a_projection_is_idempotent_and_symmetric() -> None:
    one = reference()
    _, right = complements(one)
    assert isinstance(right, Complement)
    assert right.dimensions == 80 - 4 - 8
    m, n = torch.randn(80, 3, dtype=torch.float64), torch.randn(80, 3, dtype=torch.float64)
    assert torch.allclose(right(right(m)), right(m), atol=1e-12)
    assert torch.allclose(right(m).T @ n, m.T @ right(n), atol=1e-12)


@pytest.mark.parametrize("rho", [0.01, 0.05, 0.2])
def test_rank_stays_and_the_norm_of_the_change_is_rho(rho: float) -> None:
    one = reference(600, 400, 8, 8)
    a, b = mark(one, bytes(32), rho, 2.0)
    assert int(torch.linalg.matrix_rank(2.0 * b @ a)) == 8
    dense = (2.0 * b @ a - (one.u * one.s) @ one.v.T).norm() / one.s.norm()
    assert measure_turn(one, a, b, 2.0) == pytest.approx(float(dense), rel=1e-3)
    assert measure_turn(one, a, b, 2.0) == pytest.approx(rho, rel=0.05)


def test_dead_directions_stay_dead() -> None:
    one = reference(live=2)
    assert one.s[2:].tolist() == [0.0, 0.0]
    a, b = mark(one, bytes(32), 0.1, 2.0)
    assert int(torch.linalg.matrix_rank(2.0 * b @ a)) == 2


def test_a_module_without_a_change_stays_as_it_is() -> None:
    one = reference(live=0)
    assert one.is_zero
    a, b = mark(one, bytes(32), 0.1, 2.0)
    assert not (b @ a).any()
    assert measure_turn(one, a, b, 2.0) == 0.0


def test_an_adapter_that_is_not_finite_is_refused() -> None:
    with pytest.raises(DataInvalid):
        decompose("m", torch.full((2, 5), torch.nan), torch.ones(6, 2), 1.0, torch.zeros(5, 0))


def test_an_adapter_that_does_nothing_is_refused(tiny_model_dir: Path, adapter: Path, tmp_path: Path) -> None:
    factors = read_adapter(adapter)
    write_adapter(adapter, tmp_path, factors.a, {n: torch.zeros_like(b) for n, b in factors.b.items()})
    with pytest.raises(GateFailed, match="nothing to mark"):
        prepared(tiny_model_dir, tmp_path)


def test_the_top_directions_hold_the_energy_of_the_inputs(tiny_model_dir: Path) -> None:
    model, name = load(tiny_model_dir), "model.layers.1.mlp.down_proj"
    tokens = [5 + i * 11 % 250 for i in range(300)]
    basis = top_directions(model, [name], tokens)[name]
    assert basis.shape == (64, directions_of(64)) == (64, 6)
    assert torch.allclose(basis.T @ basis, torch.eye(6, dtype=basis.dtype), atol=1e-9)
    seen: list[torch.Tensor] = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda _, x: seen.append(x[0].reshape(-1, 64).double()))
    for start in (0, 256):
        model(input_ids=torch.tensor([tokens[start : start + 256]]))
    hook.remove()
    x = torch.cat(seen).detach()
    best = torch.linalg.svdvals(x).square()[:6].sum()
    assert (x @ basis).square().sum() > 0.8 * best  # a random span of six would hold about a tenth
    assert not model.get_submodule(name)._forward_pre_hooks


@pytest.mark.parametrize("family", ["tiny_model_dir", "tiny_deepseek_dir"])
def test_stock_peft_reads_the_released_adapter(family: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    model_dir = request.getfixturevalue(family)
    targets = "attention" if family == "tiny_deepseek_dir" else "all-linear"  # see the detection tests
    source = write_random_adapter(model_dir, tmp_path / "adapter", targets=targets)
    factors, _, made = marked(model_dir, source)
    released = tmp_path / "released"
    released.mkdir()
    write_adapter(source, released, made.a, made.b)
    assert (released / "adapter_config.json").read_bytes() == (source / "adapter_config.json").read_bytes()
    assert {n: t.shape for n, t in read_adapter(released).a.items()} == {n: t.shape for n, t in factors.a.items()}
    tokens = torch.tensor([[7, 30, 99, 200, 8, 12]])
    theirs = with_adapter(load(model_dir), released)(input_ids=tokens).logits
    ours: Any = load(model_dir)
    for name in factors.names:
        ours.get_submodule(name).weight.data += factors.scale * made.b[name] @ made.a[name]
    assert torch.allclose(theirs, ours(input_ids=tokens).logits, atol=1e-5)


def test_the_same_key_makes_the_same_adapter_and_another_key_another(tiny_model_dir: Path, adapter: Path) -> None:
    factors, _, first = marked(tiny_model_dir, adapter)
    _, _, second = marked(tiny_model_dir, adapter)
    _, _, other = marked(tiny_model_dir, adapter, bytes(32))
    assert all(torch.equal(first.b[n], second.b[n]) and torch.equal(first.a[n], second.a[n]) for n in factors.names)
    assert not any(torch.equal(first.b[n], other.b[n]) for n in factors.names)
    assert key_of()("m") != key_of(bytes(32))("m")
    assert with_factors(factors, first.a, first.b).scale == factors.scale
