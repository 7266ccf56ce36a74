"""Quantised bases, a frozen A and gradients kept in bfloat16: still exact, still uncoupled."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from appliance.errors import ConfigInvalid, GateFailed
from appliance.jobs.job import EngineOptions
from appliance.jobs.lora import LoraSpec
from appliance.models.quantising import is_quantised, load_quantised
from appliance.train.adapting import adapt
from appliance.train.coupling import is_coupled
from appliance.train.proofs import prove, reference_gradient
from tests.unit.train import rig
from tests.unit.train.rig import clipped, encoded, engine, total

KINDS = ["nf4", "int8"]


@pytest.fixture(params=["tiny_model_dir", "tiny_deepseek_dir"])
def directory(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


@pytest.fixture(params=["plain", "freeze-a"])
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(rig, "variant", rig.VARIANTS[request.param])
    return str(request.param)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_exact_over_a_quantised_base(directory: Path, kind: str, checkpointing: bool, variant: str) -> None:
    options = EngineOptions(physical_tokens=256, gradient_checkpointing=checkpointing)
    made = engine(directory, options=options, quantize=kind)
    assert all(is_quantised(site.base) for site in made.adapter.sites)
    batch = [encoded(n, seed=n) for n in (20, 17, 22, 24)]
    rows = made.gradients(batch).clone()
    for record, row in zip(batch, rows, strict=True):
        plain = reference_gradient(made.adapter, record)  # bitsandbytes' own product and backward pass
        assert (row[: len(plain)] - plain).norm() / plain.norm() < 2e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_records_do_not_couple_over_a_quantised_base(directory: Path, kind: str, dtype: torch.dtype) -> None:
    made = engine(directory, dtype, quantize=kind)
    record = encoded(15, seed=1)
    alone = clipped(made, [record])[0]
    # Neighbours with activations a thousand times larger, as an outlier column would have.
    for rows in (2, 5):
        batch = [encoded(16, seed=9 + i) for i in range(rows)]
        batch[rows - 1] = record
        assert torch.equal(clipped(made, batch)[rows - 1], alone)
    assert not is_coupled(made)
    prove(made)


def test_int8_with_outlier_columns_couples_and_is_refused(tiny_model_dir: Path) -> None:
    from bitsandbytes.nn import Linear8bitLt

    torch.manual_seed(0)
    layer = Linear8bitLt(32, 16, bias=False, has_fp16_weights=False, threshold=6.0)
    layer.load_state_dict({"weight": torch.randn(16, 32)})
    layer.to("cpu").eval()
    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL + 1)
    own, other = torch.randn(1, 32), torch.randn(1, 32)
    loud = other.clone()
    loud[0, 3] = 50.0  # makes column 3 an outlier column for the whole batch
    # The fault: a neighbour's large value changes the record's output.
    with torch.inference_mode():
        quiet_output = layer(torch.cat([own, other]))[0]
        assert not torch.equal(layer(torch.cat([own, loud]))[0], quiet_output)
    model, _ = load_quantised(tiny_model_dir, torch.float32, "int8")
    model.model.layers[0].mlp.up_proj.state.threshold = 6.0
    with pytest.raises(ConfigInvalid, match="outlier columns"):
        adapt(model, LoraSpec(r=4), 1)


def test_a_repacked_layer_is_found(tiny_model_dir: Path) -> None:
    made = engine(tiny_model_dir, quantize="nf4")
    site: Any = made.adapter.sites[2]
    made.gradients([encoded(16, 1)])
    site.base.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(GateFailed, match="repacked"):
        made.gradients([encoded(16, 1)])


def test_the_proofs_do_not_repack(tiny_model_dir: Path) -> None:
    # In evaluation mode, without a gradient, bitsandbytes changes the layout of the weights in place.
    made = engine(tiny_model_dir, torch.bfloat16, quantize="nf4", random_b=False)
    before = [site.weight(torch.bfloat16).clone() for site in made.adapter.sites]
    prove(made)
    assert all(
        torch.equal(site.weight(torch.bfloat16), old) for site, old in zip(made.adapter.sites, before, strict=True)
    )


def test_quantised_weights_are_close_and_small(tiny_model_dir: Path) -> None:
    full = rig.load(tiny_model_dir)
    for kind, error, size in (("nf4", 0.4, 0.6), ("int8", 0.03, 1.1)):
        made = engine(tiny_model_dir, quantize=kind)
        for site in made.adapter.sites:
            true = full.get_submodule(site.name).weight
            assert (site.weight(torch.float32) - true).norm() < error * true.norm()
            assert site.base.weight.numel() * site.base.weight.element_size() <= size * true.numel()


def test_targets_and_refusals_over_a_quantised_base(tiny_model_dir: Path) -> None:
    model, _ = load_quantised(tiny_model_dir, torch.float32, "nf4")
    with pytest.raises(ConfigInvalid, match="rank 33"):
        adapt(model, LoraSpec(r=33), 1)
    assert len(adapt(model, LoraSpec(r=4, targets=("o_proj",)), 1).sites) == 2


# --- a frozen A, and gradients in bfloat16 ---------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True])
def test_freeze_a_is_exact(directory: Path, monkeypatch: pytest.MonkeyPatch, checkpointing: bool) -> None:
    options = EngineOptions(physical_tokens=256, gradient_checkpointing=checkpointing)
    batch = [encoded(n, seed=n) for n in (20, 17, 22, 24)]
    whole = engine(directory, options=options)
    rows = whole.gradients(batch).clone()
    monkeypatch.setattr(rig, "variant", rig.VARIANTS["freeze-a"])
    made = engine(directory, options=options)
    half = made.gradients(batch).clone()
    for record, row, both in zip(batch, half, rows, strict=True):
        plain = reference_gradient(made.adapter, record)
        assert len(plain) == made.adapter.parameters == sum(p.numel() for p in made.adapter.trainable)
        assert (row[: len(plain)] - plain).norm() / plain.norm() < 1e-5
        # Bit for bit the B part of what plain LoRA computes.
        parts = [both[s.middle : s.end] for s in whole.adapter.sites]
        assert torch.equal(row[: len(plain)], torch.cat(parts))


def test_freeze_a_keeps_no_input(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kept() -> int:
        made = engine(tiny_model_dir, random_b=False)
        seen: dict[int, int] = {}
        record = encoded(120, 1)
        made.buffer.begin(1, made.expected, len(made.adapter.sites))

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            out = made._body(input_ids=torch.tensor([record.ids]), use_cache=False).last_hidden_state
        weights = {p.untyped_storage().data_ptr() for p in made.adapter.model.parameters()}
        assert out.requires_grad
        return sum(size for pointer, size in seen.items() if pointer not in weights)

    plain = kept()
    monkeypatch.setattr(rig, "variant", rig.VARIANTS["freeze-a"])
    assert kept() < 0.9 * plain


def test_gradients_in_bfloat16_are_rounded_and_never_too_long(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = [encoded(n, seed=n) for n in (20, 17, 22, 24)]
    exact = engine(directory).gradients(batch).clone()
    monkeypatch.setattr(rig, "variant", rig.VARIANTS["bf16-gradients"])
    made = engine(directory, max_grad_norm=0.01)
    assert made.precision == torch.bfloat16
    assert torch.equal(made.gradients(batch), exact.bfloat16())
    for row in clipped(made, batch):
        assert 0.0099 < float(row.double().norm()) * made.sum.grid <= 0.01
    rows_of_float32 = len(engine(directory, options=EngineOptions(physical_tokens=256)).buffer.data)
    assert len(made.buffer.data) >= rows_of_float32


def test_both_options_train(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rig, "variant", rig.VARIANTS["freeze-a"] | rig.VARIANTS["bf16-gradients"])
    made = engine(tiny_model_dir, torch.bfloat16, quantize="nf4")
    units = [[encoded(n, n)] for n in (9, 20, 21, 22)] + [[encoded(30, 3), encoded(12, 4)]]
    together = total(made, units)
    assert torch.equal(together, sum(total(made, [unit]) for unit in units))
