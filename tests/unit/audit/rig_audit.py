"""The mechanism of the self-test's tests: a tiny Llama, assembled as a run would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from appliance.jobs.job import EngineOptions
from appliance.jobs.lora import LoraSpec
from appliance.jobs.plan import PrivacyPlan
from appliance.jobs.train import TrainSpec
from appliance.train.mechanism import assemble
from appliance.train.tap import ReleaseTap
from tests.unit.train import rig


def claimed(**changes: Any) -> PrivacyPlan:
    values = {"declared_units": 2000, "expected_batch_size": 20, "steps": 100, "delta": 1e-5}
    return rig.plan(**(values | changes))


def tap(directory: Path, plan: PrivacyPlan, dtype: torch.dtype = torch.float32) -> ReleaseTap:
    from transformers import AutoTokenizer

    assembled = assemble(
        plan,
        LoraSpec(r=8),
        TrainSpec(lr=1e-2, max_tokens=64),
        EngineOptions(physical_tokens=256, dtype=str(dtype).removeprefix("torch.")),  # type: ignore[arg-type]
        rig.load(directory, dtype),
        AutoTokenizer.from_pretrained(directory),
    )
    return ReleaseTap(assembled, plan)
