"""The banking77 benchmark on a tiny model: what it compares is what it says, and its figures can fail."""

import importlib.util
import sys
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


def test_plain_learns_and_what_is_kept_of_its_gain_is_measured_against_it(
    banking: Any, tiny_model_dir: Path, tmp_path: Path
) -> None:
    _, _, spec = banking.planned(tiny_model_dir, 8.0, len(TRAINING))
    encoder = Encoder(load_tokenizer(tiny_model_dir), spec)
    held_out = [encoder.encode(record(number)) for number in range(100, 112)]
    base = banking.losses(banking.stock(tiny_model_dir, None, tmp_path), held_out)
    plain = banking.plain(tiny_model_dir, TRAINING, 2e-2)
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
