"""The detector: what it survives, what it never claims, and that its bound on p holds."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from appliance.errors import DataInvalid, IntegrityError
from appliance.watermark import escrow
from appliance.watermark.adapters import AdapterSuspect, Factors, ModelSuspect, open_tensors, write_adapter
from appliance.watermark.certificate import p_text, verdict
from appliance.watermark.detection import CLAIM, is_detected, log_p_bound, project, score
from appliance.watermark.embedding import mark
from appliance.watermark.envelope import TARGETS, predict, strength
from appliance.watermark.reference import Reference
from tests.unit.watermark.watermark_rig import (
    MASTER,
    MODEL,
    ROLE,
    key_of,
    load,
    marked,
    residual_of,
    score_of,
    with_adapter,
    with_factors,
    write_random_adapter,
)

# On mixtures of experts stock PEFT reads gate_proj and its like as the fused weights of the routed experts.
STOCK = {"tiny_model_dir": "all-linear", "tiny_deepseek_dir": "attention"}
Case = tuple[Factors, Factors, tuple[Reference, ...]]


@pytest.fixture(scope="module")
def adapter(built_once: Callable[[str, Callable[[Path], None]], Path], tiny_model_dir: Path) -> Path:
    return built_once("watermark-adapter", lambda d: write_random_adapter(tiny_model_dir, d) and None)


@pytest.fixture(scope="module")
def case(tiny_model_dir: Path, adapter: Path) -> Case:
    """Unmarked factors, marked factors, references."""
    factors, ready, made = marked(tiny_model_dir, adapter)
    return factors, with_factors(factors, made.a, made.b), ready.references


def changed(
    factors: Factors, change: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
) -> Factors:
    pairs = {name: change(factors.a[name].double(), factors.b[name].double()) for name in factors.names}
    return with_factors(factors, {n: a for n, (a, _) in pairs.items()}, {n: b for n, (_, b) in pairs.items()})


def refactored(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    m = torch.randn(a.shape[0], a.shape[0], dtype=a.dtype, generator=torch.Generator().manual_seed(4))
    return torch.linalg.inv(m) @ a, b @ m


def truncated(rank: int) -> Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    def cut(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        u, s, vt = torch.linalg.svd(b @ a, full_matrices=False)
        return vt[:rank], u[:, :rank] * s[:rank]

    return cut


def test_its_own_mark_is_found_as_predicted(case: Case, tiny_model_dir: Path, adapter: Path) -> None:
    _, found, references = case
    _, ready, _ = marked(tiny_model_dir, adapter)
    assert score_of(found, references) > CLAIM
    assert score_of(found, references) == pytest.approx(ready.predicted["none"], rel=0.05)


def test_refactoring_scaling_and_negation_change_nothing(case: Case) -> None:
    _, found, references = case
    plain = score_of(found, references)
    assert score_of(changed(found, refactored), references) == pytest.approx(plain, rel=1e-5)
    assert score_of(changed(found, lambda a, b: (a, 0.3 * b)), references) == pytest.approx(plain, rel=1e-9)
    assert score_of(changed(found, lambda a, b: (a, -b)), references) == pytest.approx(-plain, rel=1e-9)
    assert is_detected(-plain)


@pytest.mark.parametrize("rank", [6, 4, 2])
def test_a_lower_rank_keeps_the_mark(case: Case, rank: int) -> None:
    _, found, references = case
    plain = score_of(found, references)
    assert score_of(changed(found, truncated(rank)), references) > 0.6 * plain * math.sqrt(rank / 8)


def test_half_of_the_modules_keep_the_mark(case: Case) -> None:
    _, found, references = case
    kept = found.names[::2]
    part = Factors(kept, {n: found.a[n] for n in kept}, {n: found.b[n] for n in kept}, found.scale, {})
    assert score_of(part, references) > CLAIM


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["tiny_model_dir", "tiny_deepseek_dir"])
def test_a_model_merged_by_stock_peft_is_found(
    family: str, dtype: torch.dtype, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    base_dir = request.getfixturevalue(family)
    source = write_random_adapter(base_dir, tmp_path / "adapter", targets=STOCK[family])
    factors, ready, made = marked(base_dir, source)
    for name, a, b in (("marked", made.a, made.b), ("plain", factors.a, factors.b)):
        (tmp_path / f"{name}-adapter").mkdir()
        write_adapter(source, tmp_path / f"{name}-adapter", a, b)
        merged = with_adapter(load(base_dir, dtype), tmp_path / f"{name}-adapter").merge_and_unload()
        merged.save_pretrained(tmp_path / name, max_shard_size="40KB")
    scores = {}
    for name in ("marked", "plain"):
        with open_tensors(tmp_path / name) as suspect, open_tensors(base_dir) as base:
            scores[name] = score(project(ModelSuspect(suspect, base), ready.references), key_of())
    assert scores["marked"] > CLAIM
    attack = "none" if dtype == torch.float32 else "bf16"
    assert scores["marked"] > 0.85 * ready.predicted[attack]
    assert abs(scores["plain"]) < 7


def test_an_unmarked_adapter_and_other_keys_are_never_claimed(
    case: Case, stress_count: Callable[[int, int], int]
) -> None:
    plain, found, references = case
    assert score_of(plain, references) == 0.0  # nothing but rounding is left of the reference itself
    stranger = changed(plain, lambda a, b: (a + 0.1 * torch.randn(a.shape, dtype=a.dtype), b))
    for suspect, keys in ((found, 1000), (stranger, stress_count(100, 1000))):
        residual = residual_of(suspect, references)
        others = [score(residual, key_of(secrets.token_bytes(32))) for _ in range(keys)]
        assert max(abs(t) for t in others) < 7
    assert abs(score_of(stranger, references)) < 7


def test_no_change_at_all_is_no_evidence(case: Case) -> None:
    _, found, references = case
    zero = changed(found, lambda a, b: (a, 0 * b))
    assert residual_of(zero, references).is_rounding
    assert score_of(zero, references) == 0.0
    assert verdict(0.0, 1) == {
        "statistic": "0.000", "p_bound": "1", "keys_tested": 1, "correction": "Bonferroni", "detected": False,
    }  # fmt: skip


def test_rounding_of_the_reference_is_no_evidence_in_any_factorisation(case: Case) -> None:
    plain, _, references = case
    again = changed(plain, refactored)
    single = with_factors(again, {n: a.float() for n, a in again.a.items()}, {n: b.float() for n, b in again.b.items()})
    assert residual_of(single, references).is_rounding


def test_the_bound_on_p_holds_for_random_keys(case: Case, stress_count: Callable[[int, int], int]) -> None:
    """Empirical tail of |T| against 2 exp(-t^2 / 2), for a suspect that is as unlike a Gaussian as can be."""
    _, found, references = case
    spiky = changed(found, lambda a, b: (a * (a.abs() == a.abs().max()), b * (b.abs() == b.abs().max())))
    for suspect in (found, spiky):
        residual = residual_of(suspect, references[:3])
        runs = stress_count(300, 10_000)
        scores = sorted(abs(score(residual, key_of(secrets.token_bytes(32)))) for _ in range(runs))
        for t in (1.5, 2.0, 2.5, 3.0, 3.5):
            bound = 2 * math.exp(-t * t / 2)
            beyond = sum(s >= t for s in scores)
            assert beyond <= runs * bound + 5 * math.sqrt(runs * bound)
        assert scores[-1] < 7


def test_a_ground_key_never_reaches_the_claim(case: Case) -> None:
    """Whoever tries keys gets about sqrt(2 ln(keys)); 2^128 keys would be needed for the claim."""
    plain, _, references = case
    stranger = changed(plain, lambda a, b: (a + 0.1 * torch.randn(a.shape, dtype=a.dtype), b))
    residual = residual_of(stranger, references[:2])
    best = max(abs(score(residual, key_of(bytes(28) + n.to_bytes(4, "big")))) for n in range(500))
    assert 2.0 < best < 6
    assert log_p_bound(CLAIM) < -128 * math.log(2)
    assert is_detected(CLAIM)
    assert not is_detected(CLAIM, keys_tested=2)


def test_a_reference_made_after_the_key_would_forge_any_score_and_is_refused(case: Case) -> None:
    plain, _, references = case
    # The forger takes the unmarked model and pretends that another one, turned by his key, was the reference.
    forged = []
    for one in references:
        a, b = mark(one, key_of(bytes(32))(one.module), -0.2, 1.0)
        u, v = torch.nn.functional.normalize(b, dim=0), torch.nn.functional.normalize(a, dim=1).T
        forged.append(Reference(one.module, u, one.s, v, one.p))
    assert score_of(plain, tuple(forged), bytes(32)) > CLAIM
    committed = escrow.digest(escrow.write(references, MODEL, ROLE))
    with pytest.raises(IntegrityError, match="not the one the ledger committed to"):
        escrow.read(escrow.write(forged, MODEL, ROLE), committed)


def test_an_escrow_comes_back_as_it_was_and_has_one_form(case: Case) -> None:
    _, found, references = case
    data = escrow.write(references, MODEL, ROLE)
    assert data == escrow.write(reversed(references), MODEL, ROLE)
    back = escrow.read(data, escrow.digest(data))
    assert [one.module for one in back] == [one.module for one in references]
    assert all(torch.equal(getattr(b, p), getattr(r, p)) for b, r in zip(back, references, strict=True) for p in "usvp")
    assert score_of(found, back) == score_of(found, references)
    altered = bytearray(data)
    altered[-1] ^= 1
    with pytest.raises(IntegrityError):
        escrow.read(bytes(altered), escrow.digest(data))


def test_a_suspect_with_other_shapes_or_numbers_that_are_not_finite_is_refused(case: Case) -> None:
    _, found, references = case
    with pytest.raises(DataInvalid, match="another shape"):
        project(AdapterSuspect(changed(found, lambda a, b: (a[:, :-1], b))), references)
    with pytest.raises(DataInvalid, match="not finite"):
        residual_of(changed(found, lambda a, b: (a * math.inf, b)), references)


def test_the_closed_form_chooses_the_smallest_strength_that_suffices(
    case: Case, tiny_model_dir: Path, adapter: Path
) -> None:
    _, ready, made = marked(tiny_model_dir, adapter)
    rho = strength(ready.samples)
    assert rho == ready.rho
    over = [predict(ready.samples, rho, attack) / target for attack, target in TARGETS.items()]
    assert rho == 0.2 or 1.0 <= min(over) < 1.01
    assert made.turned == pytest.approx(rho, rel=0.25)
    assert ready.predicted["none"] > ready.predicted["int8"] > ready.predicted["nf4"] > ready.predicted["prune50"]


@pytest.mark.parametrize(
    ("found", "keys", "text"),
    [(0.0, 1, "1"), (1.0, 1, "1"), (6.0, 1, "2^-24"), (6.0, 1000, "2^-15"), (13.4, 1, "2^-128"), (900, 1, "2^-128")],
)
def test_p_is_stated_as_a_bound(found: float, keys: int, text: str) -> None:
    assert p_text(found, keys) == text
    assert p_text(-found, keys) == text


def test_the_key_is_the_only_secret_that_matters(case: Case) -> None:
    _, found, references = case
    residual = residual_of(found, references)
    assert score(residual, key_of(MASTER)) > CLAIM
    one_bit = bytes([MASTER[0] ^ 1]) + MASTER[1:]
    assert abs(score(residual, key_of(one_bit))) < 7


def test_strength_follows_the_norm_of_the_change(tiny_model_dir: Path, tmp_path: Path) -> None:
    """A strong adapter needs little; a weak one gets the most there is, and the envelope says what may be lost."""
    chosen = {}
    for share in (0.5, 0.001):
        source = write_random_adapter(tiny_model_dir, tmp_path / str(share), share=share)
        _, ready, _ = marked(tiny_model_dir, source)
        chosen[share] = ready
    assert 0 < chosen[0.5].rho < 0.2 == chosen[0.001].rho
    assert chosen[0.5].predicted["nf4"] > CLAIM > chosen[0.001].predicted["nf4"]


@pytest.mark.model
def test_smollm2_adapter_and_merged_model(
    smollm2_dir: Path, tmp_path: Path, stress_count: Callable[[int, int], int]
) -> None:
    source = write_random_adapter(smollm2_dir, tmp_path / "adapter", share=0.003)
    factors, ready, made = marked(smollm2_dir, source)
    residuals = [residual_of(with_factors(factors, made.a, made.b), ready.references)]
    for name, a, b in (("marked", made.a, made.b), ("plain", factors.a, factors.b)):
        (tmp_path / f"{name}-adapter").mkdir()
        write_adapter(source, tmp_path / f"{name}-adapter", a, b)
        whole = with_adapter(load(smollm2_dir), tmp_path / f"{name}-adapter").merge_and_unload()
        whole.bfloat16().save_pretrained(tmp_path / name)
        with open_tensors(tmp_path / name) as suspect, open_tensors(smollm2_dir) as base:
            residuals.append(project(ModelSuspect(suspect, base), ready.references))
    adapter, merged, plain = (score(residual, key_of()) for residual in residuals)
    assert adapter == pytest.approx(ready.predicted["none"], rel=0.02)
    assert merged > max(CLAIM, 0.85 * ready.predicted["bf16"])
    assert abs(plain) < 7
    assert score_of(factors, ready.references) == 0.0
    for residual in residuals:
        others = [score(residual, key_of(secrets.token_bytes(32))) for _ in range(stress_count(20, 1000))]
        assert max(abs(t) for t in others) < 7
