"""The banking77 benchmark on a tiny model: what it compares is what it says, and its figures can fail."""

import importlib.util
import json
import sys
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from appliance.jobs.record import Record
from appliance.models.loading import load_tokenizer
from appliance.train.encode import Encoder

BENCH = Path(__file__).parents[3] / "bench" / "banking.py"
LABELS = ["card", "top up", "exchange rate"]


@pytest.fixture(scope="module")
def banking() -> ModuleType:
    spec = importlib.util.spec_from_file_location("banking", BENCH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    sys.modules["banking"] = module  # dataclasses look themselves up
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


def record(number: int) -> Record:
    label = LABELS[number % len(LABELS)]
    return Record(unit=str(number), kind="completion", parts=(("prompt", f"q{number}"), ("completion", label)))


TRAINING = [record(number) for number in range(48)]


@pytest.mark.usefixtures("fixed_keys")
def test_plain_learns_and_what_is_kept_of_its_gain_is_measured_against_it(
    banking: Any, tiny_model_dir: Path, tmp_path: Path
) -> None:
    _, _, spec = banking.planned(tiny_model_dir, 8.0, len(TRAINING))
    encoder = Encoder(load_tokenizer(tiny_model_dir), spec)
    held_out = [encoder.encode(record(number)) for number in range(100, 112)]
    base = banking.losses(banking.stock(tiny_model_dir, None, tmp_path), held_out)
    plain = banking.plain(tiny_model_dir, TRAINING, 1e-2, epochs=5)  # gains 0.5 nat, whatever the coins say
    best = banking.losses(banking.stock(tiny_model_dir, plain, tmp_path), held_out)
    assert sum(best) < sum(base) - 0.1 * len(base)
    trained = banking.private(tiny_model_dir, TRAINING, 8.0)
    assert trained.private
    assert not plain.private
    noisy = banking.losses(banking.stock(tiny_model_dir, trained, tmp_path), held_out)
    assert noisy != base
    assert banking.kept(base, best, best) == pytest.approx((1, 1, 1))
    assert banking.kept(base, best, base) == pytest.approx((0, 0, 0))
    halfway = [(b + p) / 2 for b, p in zip(base, best, strict=True)]
    assert banking.kept(base, best, halfway) == pytest.approx((0.5, 0.5, 0.5))


def test_plain_sums_gradients_as_they_are(banking: Any) -> None:
    total = banking.PlainSum(width=4, parameters=3)
    total.add(torch.tensor([[1.0, 2.0, 3.0, 0.0], [100.0, 0.0, 1.0, 0.0]]))
    total.add(torch.tensor([[1.0, 1.0, 1.0, 0.0]]))
    assert total.take().tolist() == [102.0, 3.0, 5.0]
    assert total.take().tolist() == [0.0, 0.0, 0.0]


@torch.inference_mode()
def test_labels_are_ranked_as_by_running_each_of_them_whole(banking: Any, tiny_model_dir: Path, tmp_path: Path) -> None:
    """Labels share the prompt's cache and are padded to the longest; neither may change who wins."""
    _, _, spec = banking.planned(tiny_model_dir, 8.0, len(TRAINING))
    encoder = Encoder(load_tokenizer(tiny_model_dir), spec)
    model = banking.stock(tiny_model_dir, None, tmp_path).float()
    asked = [record(number) for number in range(9)]
    whole = []
    for one in asked:
        rows = [Record(unit="", kind="completion", parts=(one.parts[0], ("completion", text))) for text in LABELS]
        encoded = [encoder.encode(row) for row in rows]
        sums = [loss * len(row.positions) for loss, row in zip(banking.losses(model, encoded), encoded, strict=True)]
        whole.append(float(LABELS[sums.index(min(sums))] == one.parts[1][1]))
    assert banking.hits(model, encoder, asked, LABELS) == whole
    assert 0 < sum(whole) < len(whole)


@pytest.fixture(scope="module")
def sweep(banking: ModuleType) -> ModuleType:
    spec = importlib.util.spec_from_file_location("sweep", BENCH.with_name("sweep.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    sys.modules["sweep"] = module
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


def test_a_sweep_measures_every_case_once_and_says_what_it_lacks(
    sweep: Any, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part, count in (("train", 20), ("test", 6)):
        rows = [f"question {n},{LABELS[n % 3].replace(' ', '_')}" for n in range(count)]
        (tmp_path / f"{part}.csv").write_text("\n".join(["text,category", *rows]))
    monkeypatch.setattr(sweep, "EPSILONS", (8.0,))
    monkeypatch.setattr(sweep, "PLAIN_RATES", {1: (5e-3,), 3: (2e-3,)})
    wanted = sweep.Sweep(
        model=str(tiny_model_dir), data=str(tmp_path), device="cpu", tokens=512, units=20, held_out=6, epochs=(1, 3)
    )
    (tmp_path / "sweep.json").write_text(json.dumps(asdict(wanted)))
    for name in ("plain_epochs3_lr0.002", "eps8_epochs3"):  # two cases that another process would have
        (tmp_path / f"{name}.claim").touch()
    sweep.child(tmp_path)
    found: dict[str, Any] = {}
    sweep.collect(wanted, tmp_path, found)
    assert found.keys() == {"base", "plain_epochs1_lr0.005", "eps8_epochs1"}
    assert {len(one["losses"]) for one in found.values()} == {len(one["hits"]) for one in found.values()} == {6}
    figures = {figure.name: figure for figure in sweep.summary(wanted, found | {"eps8_epochs3": {"error": "a fault"}})}
    assert figures["gain_kept_eps8_epochs1"].value is not None
    assert figures["loss_base"].value == pytest.approx(sum(found["base"]["losses"]) / 6)
    assert figures["gain_kept_eps8_epochs3"].note == "not run: a fault"
    assert figures["accuracy_plain_epochs3_lr0.002"].note == "not run: time"


def test_more_epochs_are_more_steps_of_the_same_batch(banking: Any, tiny_model_dir: Path) -> None:
    one, three = (banking.planned(tiny_model_dir, 8.0, 10_003, epochs)[0] for epochs in (1, 3))
    default = banking.planned(tiny_model_dir, 8.0, 10_003)[0]
    assert (one.steps, one.expected_batch_size) == (default.steps, default.expected_batch_size) == (24, 417)
    assert (three.steps, three.expected_batch_size) == (72, 417)
    assert three.epsilon == one.epsilon == 8
