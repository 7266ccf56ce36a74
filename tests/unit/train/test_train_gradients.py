"""The engine's per-record gradients are those of plain autograd, and no record's depends on another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from appliance.errors import ConfigInvalid, GateFailed
from appliance.jobs.job import EngineOptions
from appliance.jobs.lora import LoraSpec
from appliance.train.adapting import adapt, target_names
from appliance.train.coupling import is_coupled, uncouple
from appliance.train.engine import Engine
from appliance.train.lora import BLOCK
from appliance.train.proofs import prove, reference_gradient
from appliance.train.rows import RowCounts
from tests.unit.train.rig import clipped, encoded, engine, load, plan, total

DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(params=["tiny_model_dir", "tiny_deepseek_dir"])
def directory(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("targets", ["all-linear", "attention"])
def test_exact_against_one_record_at_a_time(directory: Path, targets: str, checkpointing: bool) -> None:
    options = EngineOptions(physical_tokens=256, gradient_checkpointing=checkpointing)
    made = engine(directory, targets=targets, options=options)
    batch = [encoded(n, seed=n) for n in (20, 17, 22, 24)]
    rows = made.gradients(batch).clone()
    for record, row in zip(batch, rows, strict=True):
        plain = reference_gradient(made.adapter, record)
        assert (row[: len(plain)] - plain).norm() / plain.norm() < 1e-5
        assert abs(float(made.sum.factors(row[None].clone())[0]) * plain.norm() * made.sum.grid) <= 0.5


def test_checkpointing_changes_no_bit(directory: Path) -> None:
    batch = [encoded(n, seed=n) for n in (20, 17, 22)]
    plain = engine(directory).gradients(batch).clone()
    options = EngineOptions(physical_tokens=256, gradient_checkpointing=True)
    assert torch.equal(plain, engine(directory, options=options).gradients(batch))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft 0.21 asks transformers 5 by an old name
def test_checkpointing_silences_hooks_but_not_the_engine(tiny_model_dir: Path) -> None:
    # The fault, as Opacus has it: what its hooks kept of the forward pass is not what is differentiated.
    from opacus.grad_sample import GradSampleModule
    from peft import LoraConfig, get_peft_model

    base = load(tiny_model_dir).train()
    base.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    hooked = GradSampleModule(get_peft_model(base, LoraConfig(r=4, target_modules="all-linear")), strict=False)
    hooked(input_ids=torch.tensor([encoded(16, 1).ids] * 2)).logits.square().mean().backward()
    found = [getattr(p, "grad_sample", None) for p in hooked.parameters() if p.requires_grad]
    assert sum(f is None for f in found) > len(found) / 2
    options = EngineOptions(physical_tokens=256, gradient_checkpointing=True)
    batch = [encoded(16, 1), encoded(16, 2)]
    honest = engine(tiny_model_dir).gradients(batch).clone()
    assert torch.equal(engine(tiny_model_dir, options=options).gradients(batch), honest)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [8, 15, 40])
def test_a_record_is_bit_identical_whatever_its_neighbours(directory: Path, dtype: torch.dtype, tokens: int) -> None:
    made = engine(directory, dtype)
    record = encoded(tokens, seed=1)
    alone = clipped(made, [record])[0]
    for rows in {2, 3, made.rows_at(record.length)} - {1}:
        for position in {0, rows // 2, rows - 1}:
            batch = [encoded(record.length, seed=100 + i) for i in range(rows)]
            batch[position] = record
            assert torch.equal(clipped(made, batch)[position], alone)


@pytest.mark.parametrize("counts", [(4,), (1,), (8, 2)])
def test_proved_row_counts_give_the_same_sum(tiny_model_dir: Path, counts: tuple[int, ...]) -> None:
    made = engine(tiny_model_dir)
    units = [[encoded(n, seed=n)] for n in (9, 20, 21, 22, 23, 24, 24, 24, 40)]
    free = total(made, units)
    made.counts = RowCounts(dict.fromkeys((16, 24, 40), counts))
    seen = []
    body = made._body
    made._body = lambda **kw: seen.append(len(kw["input_ids"])) or body(**kw)  # type: ignore[assignment, func-returns-value]
    assert torch.equal(total(made, units), free)
    assert set(seen) <= set(counts)


@pytest.mark.parametrize("rank", [4, 8, 16])
def test_a_narrow_adapter_does_not_make_records_be_computed_apart(tiny_model_dir: Path, rank: int) -> None:
    """Widths of a multiple of 16 need it with more than two threads only; it costs seven parts in a hundred."""
    built = Engine(adapt(load(tiny_model_dir), LoraSpec(r=rank), 1), plan(), EngineOptions(physical_tokens=256), 0)
    assert set(built._widths) == {16, 32, 64, 272}


def test_a_length_without_proof_is_computed_alone(tiny_model_dir: Path) -> None:
    made = engine(tiny_model_dir)
    units = [[encoded(n, seed=n)] for n in (9, 20, 21, 22, 23)]
    free = total(made, units)
    made.counts = RowCounts({16: (4, 2, 1)})
    seen = []
    body = made._body
    made._body = lambda **kw: seen.append(tuple(kw["input_ids"].shape)) or body(**kw)  # type: ignore[assignment, func-returns-value]
    assert torch.equal(total(made, units), free)
    assert seen == [(1, 16), *[(1, 24)] * 4]


def sensitive_to(made: Any, factor: Any) -> None:
    """A model whose kernels give other bits for other row counts, as a GEMM that changes its algorithm does."""
    body = made._body

    def sensitive(**inputs: Any) -> Any:
        out = body(**inputs)
        out.last_hidden_state = out.last_hidden_state * factor(len(inputs["input_ids"]))
        return out

    made._body = sensitive


def test_row_counts_that_give_other_bits_are_not_used(tiny_model_dir: Path) -> None:
    made = engine(tiny_model_dir, random_b=False)
    sensitive_to(made, lambda rows: 1.0001 if rows < 4 else 1.0)
    assert coupled_with_b(made)
    proved = uncouple(made, [16, 24]).proved
    assert proved == {24: (10, 8, 4), 16: (16, 8, 4)}
    assert not is_coupled(made, [16, 24])
    rig_b(made)
    record = encoded(16, 1)
    alone = total(made, [[record]])
    others = [[encoded(16, n)] for n in range(2, 9)]
    assert torch.equal(total(made, [*others, [record]]) - total(made, others), alone)


def test_row_counts_in_which_rows_are_not_alike_are_not_used(tiny_model_dir: Path) -> None:
    made = engine(tiny_model_dir)
    sensitive_to(made, lambda rows: (1 + 1e-4 * (torch.arange(rows) // 2 % 2))[:, None, None])
    assert set(uncouple(made, [16, 24]).proved.values()) == {(2, 1)}


def test_a_model_that_remembers_longer_records_is_refused(tiny_model_dir: Path) -> None:
    made = engine(tiny_model_dir)
    body, model = made._body, made.adapter.model

    def remembering(**inputs: Any) -> Any:
        model.longest = max(getattr(model, "longest", 0), inputs["input_ids"].shape[1])
        out = body(**inputs)
        if inputs["input_ids"].shape[1] < 12:  # as dynamic rotary embeddings do
            model.longest = 0
        out.last_hidden_state = out.last_hidden_state * (1 + model.longest / 1000)
        return out

    made._body = remembering  # type: ignore[assignment]
    with pytest.raises(ConfigInvalid, match="longest"):
        uncouple(made, [16, 24, 64])
    with pytest.raises(GateFailed, match="other bits"):
        uncouple(made, [8, 24, 64])


def test_records_that_couple_even_alone_are_refused(tiny_model_dir: Path) -> None:
    made = engine(tiny_model_dir)
    body, calls = made._body, []

    def drifting(**inputs: Any) -> Any:
        calls.append(1)
        out = body(**inputs)
        out.last_hidden_state = out.last_hidden_state * (1 + 1e-6 * (len(calls) % 5))
        return out

    made._body = drifting  # type: ignore[assignment]
    with pytest.raises(GateFailed):
        prove(made)


def rig_b(made: Any) -> None:
    for site in made.adapter.sites:
        site.b.data.normal_(0, 0.02, generator=torch.Generator().manual_seed(1))


def coupled_with_b(made: Any) -> bool:
    rig_b(made)
    return is_coupled(made)


def test_proofs_leave_the_start_untouched(directory: Path) -> None:
    made = engine(directory, random_b=False)
    before = [p.detach().clone() for p in made.adapter.trainable]
    prove(made)
    assert all(torch.equal(p, old) for p, old in zip(made.adapter.trainable, before, strict=True))
    assert all(not site.b.any() for site in made.adapter.sites)
    assert made.counts is not None
    assert all(counts[-1] == 1 for counts in made.counts.proved.values())


def test_a_wrong_gradient_fails_the_proof(tiny_model_dir: Path) -> None:
    made = engine(tiny_model_dir)
    made.adapter.sites[3].scale *= 1.001
    with pytest.raises(GateFailed, match="plain automatic differentiation"):
        prove(made)


def test_a_head_that_does_more_than_a_linear_layer_fails_the_proof(tiny_model_dir: Path) -> None:
    made = engine(tiny_model_dir)
    forward = made.adapter.model.forward

    def capped(*args: Any, **kw: Any) -> Any:
        out = forward(*args, **kw)
        out.logits = 0.1 * torch.tanh(out.logits / 0.1)
        return out

    made.adapter.model.forward = capped  # type: ignore[method-assign]
    with pytest.raises(GateFailed):
        prove(made)


def test_targets(directory: Path) -> None:
    model = load(directory)
    every = target_names(model, LoraSpec())
    assert "lm_head" not in every
    assert len(every) == sum(isinstance(m, torch.nn.Linear) for m in model.modules()) - 1
    attention = target_names(model, LoraSpec(targets="attention"))
    assert attention
    assert all("self_attn" in name for name in attention)
    assert target_names(model, LoraSpec(targets=("o_proj",))) == [n for n in every if n.endswith("o_proj")]


def test_the_start_depends_on_the_seed_alone(tiny_model_dir: Path) -> None:
    first, again, other = (adapt(load(tiny_model_dir), LoraSpec(r=4), seed) for seed in (3, 3, 4))
    torch.manual_seed(0)
    for a, b, c in zip(first.sites, again.sites, other.sites, strict=True):
        assert torch.equal(a.a, b.a)
        assert not torch.equal(a.a, c.a)
        assert not a.b.any()
        assert a.a.dtype == torch.float32


def test_layout_round_trip(tiny_model_dir: Path) -> None:
    made = engine(tiny_model_dir)
    values = [torch.randn_like(p) for p in made.adapter.trainable]
    flat = made.adapter.flatten(values)
    assert all(torch.equal(v, w) for (_, v), w in zip(made.adapter.views(flat), values, strict=True))
    assert flat.numel() == made.adapter.parameters == sum(p.numel() for p in made.adapter.trainable)
    assert made.buffer.width % BLOCK == 0


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        (LoraSpec(targets=("nothing",)), "no linear layer"),
        (LoraSpec(targets=("lm_head",)), "no linear layer"),
        (LoraSpec(r=33), "rank 33"),
    ],
)
def test_impossible_targets_are_refused(tiny_model_dir: Path, spec: LoraSpec, match: str) -> None:
    with pytest.raises(ConfigInvalid, match=match):
        adapt(load(tiny_model_dir), spec, 1)


def test_models_that_couple_or_share_are_refused(tiny_model_dir: Path) -> None:
    tied = load(tiny_model_dir)
    tied.model.layers[1].self_attn.q_proj.weight = tied.model.layers[0].self_attn.q_proj.weight
    with pytest.raises(ConfigInvalid, match="tied"):
        adapt(tied, LoraSpec(r=4), 1)
    twice = load(tiny_model_dir)
    twice.model.layers[1].mlp.register_forward_hook(lambda m, x, y: y + m.down_proj(m.up_proj(x[0])))
    with pytest.raises(ConfigInvalid, match="runs 2 times"):
        adapt(twice, LoraSpec(r=4), 1)
    router = load(tiny_model_dir)
    router.config.output_router_logits = True
    with pytest.raises(ConfigInvalid, match="router"):
        adapt(router, LoraSpec(r=4), 1)
    norm = load(tiny_model_dir)
    norm.model.extra = torch.nn.BatchNorm1d(3)
    with pytest.raises(ConfigInvalid, match="batch normalisation"):
        adapt(norm, LoraSpec(r=4), 1)
    adapted = load(tiny_model_dir)
    adapt(adapted, LoraSpec(r=4), 1)
    with pytest.raises(ConfigInvalid, match="already"):
        adapt(adapted, LoraSpec(r=4), 1)
