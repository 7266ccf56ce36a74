"""The worker's part as a whole: what it releases is what stock tools compute record by record, plus the noise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import IntegrityError
from appliance.jobs.evaluate import EvaluateJob
from appliance.jobs.job import EngineOptions, IsolationSpec, SealedObject
from appliance.jobs.plan import UnitOfPrivacy
from appliance.jobs.train import TrainSpec
from appliance.privacy.evaluation import GRID, Statistic
from appliance.store.trees import tree_digest
from appliance.train.encode import Encoder
from appliance.worker import evaluate
from appliance.worker.variants import open_variants
from tests.unit.evaluate.test_evaluate_losses import plain
from tests.unit.train.rig import load, people


def job(model_dir: Path, adapter: Path, marked: Path | None, **changes: Any) -> EvaluateJob:
    values: dict[str, Any] = {
        "schema": "appliance.job/1",
        "run_id": "run-1",
        "evaluation_id": "eval-1",
        "train": TrainSpec(lr=0.1, max_tokens=40),
        "engine": EngineOptions(physical_tokens=256),
        "isolation": IsolationSpec(),
        "model_dir": str(model_dir),
        "model_sha256": tree_digest(model_dir)[0],
        "adapter_dir": str(adapter),
        "adapter_sha256": tree_digest(adapter)[0],
        "released_dir": str(marked) if marked else None,
        "released_sha256": tree_digest(marked)[0] if marked else None,
        "dataset": SealedObject(dataset_id="d", path="p", blake3="1" * 64, wrapped_key="w", key_epoch=1),
        "unit": UnitOfPrivacy(kind="subject", key="patient", max_records=4),
        "declared_units": 7,
        "noise_multiplier": 1e-6,
        "clip_nat": 0.05,
        "public_tokens": 256,
        "agent_socket": "s",
    }
    return EvaluateJob(**(values | changes))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft 0.21 on transformers 5
@pytest.mark.parametrize("unit", ["subject", "record"])
def test_what_is_released_is_what_stock_tools_say(
    unit: str, tiny_model_dir: Path, write_adapter: Callable[..., Path]
) -> None:
    """The noise is made too small to hide anything, which no plan would do."""
    from peft import PeftModel
    from transformers import AutoTokenizer

    adapters = [write_adapter(tiny_model_dir, seed) for seed in (1, 2)]
    asked = job(tiny_model_dir, *adapters, unit=UnitOfPrivacy(kind=unit, max_records=4))  # type: ignore[arg-type]
    records = people(20, units=7)
    opened = open_variants(asked)
    tokenizer, meter = opened.tokenizer, opened.meter()
    released = evaluate._release(asked, tokenizer, meter, records)  # type: ignore[arg-type]

    encoder = Encoder(AutoTokenizer.from_pretrained(tiny_model_dir), asked.train)
    models = [load(tiny_model_dir), *(PeftModel.from_pretrained(load(tiny_model_dir), path) for path in adapters)]
    units: dict[str, list[list[float]]] = {}
    for number, record in enumerate(records):
        base, *others = [plain(model.eval(), encoder.encode(record)) for model in models]
        units.setdefault(record.unit if unit == "subject" else str(number), []).append([base - one for one in others])
    statistic = Statistic(comparisons=2, clip_nat=0.05)
    rows = [statistic.row([sum(column) / len(own) for column in zip(*own, strict=True)]) for own in units.values()]
    assert len(rows) == (7 if unit == "subject" else 20)
    for got, parts in zip(released, zip(*rows, strict=True), strict=True):
        assert abs(got - sum(parts)) < 2e-3 * GRID
    assert max(abs(part) for row in rows for part in row[:2]) > 0.05 * GRID


def test_figures_of_public_text(tiny_model_dir: Path, write_adapter: Callable[..., Path]) -> None:
    adapters = [write_adapter(tiny_model_dir, seed) for seed in (1, 2)]
    asked = job(tiny_model_dir, adapters[0], adapters[0])
    opened = open_variants(asked)
    tokenizer, meter = opened.tokenizer, opened.meter()
    public = evaluate._public(asked, tokenizer, meter, ["adapter", "marked"])
    assert (public["tokens"], public["change_percent"]) == ("256", "0.0")
    assert public["loss_adapter"] == public["loss_marked"] != public["loss_base"]
    asked = job(tiny_model_dir, adapters[0], None)
    opened = open_variants(asked)
    tokenizer, meter = opened.tokenizer, opened.meter()
    assert set(evaluate._public(asked, tokenizer, meter, ["adapter"])) == {
        "tokens",
        "text_sha256",
        "loss_base",
        "loss_adapter",
    }


def test_an_adapter_that_is_not_the_job_s_is_refused(tiny_model_dir: Path, write_adapter: Callable[..., Path]) -> None:
    asked = job(tiny_model_dir, write_adapter(tiny_model_dir), None, adapter_sha256="00" * 32)
    with pytest.raises(IntegrityError, match="adapter"):
        open_variants(asked)
