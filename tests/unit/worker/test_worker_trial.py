"""The trial of an import: on the model itself or its twin, in every precision, within its time, and refused where
nothing works."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import DataInvalid
from appliance.models import twin
from appliance.worker import trial
from appliance.worker.trial import PRECISIONS, try_architecture
from tests.conftest import _save_model

EXACT = dict.fromkeys(PRECISIONS, "")
WHOLE = {
    "vocab_size": 272, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 4,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "granite": {**WHOLE, "logits_scaling": 8.0},
    "gemma2": {**WHOLE, "head_dim": 16, "sliding_window": 32},
    "bloom": {"vocab_size": 272, "hidden_size": 64, "n_layer": 2, "n_head": 4},
    "falcon": {"vocab_size": 272, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    "gpt2": {"vocab_size": 272, "n_embd": 64, "n_layer": 2, "n_head": 4},
}


@pytest.fixture
def directory(built_once: Callable[[str, Callable[[Path], None]], Path]) -> Callable[[str], Path]:
    from transformers import AutoConfig

    def get(kind: str) -> Path:
        config = AutoConfig.for_model(kind, **KINDS[kind])
        return built_once(f"trial-{kind}", lambda target: _save_model(target, config, seed=29))

    return get


@pytest.mark.parametrize("kind", ["granite", "gemma2", "bloom"])
def test_a_small_model_is_tried_itself(kind: str, directory: Callable[[str], Path]) -> None:
    assert try_architecture(directory(kind), 100_000) == EXACT


def test_what_only_some_precisions_can_do_is_told(directory: Callable[[str], Path]) -> None:
    found = try_architecture(directory("falcon"), 100_000)
    assert (found["float32"], found["bfloat16"]) == ("", "")
    assert "quantised" in found["nf4"]


def test_what_no_precision_can_do_is_refused_with_the_reason(directory: Callable[[str], Path]) -> None:
    with pytest.raises(DataInvalid, match="cannot be trained: the layers of this model are of type Conv1D"):
        try_architecture(directory("gpt2"), 100_000)


def test_a_large_model_is_tried_on_a_twin_without_its_weights(directory: Callable[[str], Path], tmp_path: Path) -> None:
    source = Path(shutil.copytree(directory("granite"), tmp_path / "m"))
    (source / "model.safetensors").unlink()
    assert try_architecture(source, 10**10) == EXACT


def test_where_no_twin_runs_nothing_is_said(directory: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twin, "shrink", lambda config: setattr(config, "num_attention_heads", 7))
    assert try_architecture(directory("granite"), 10**10) == {}


def test_a_trial_ends_in_time(directory: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    handler, started = signal.getsignal(signal.SIGALRM), time.monotonic()

    def endless(*_: Any) -> str:
        while True:
            try:
                time.sleep(0.01)
            except Exception:  # noqa: BLE001 - as code on the way may do
                continue

    monkeypatch.setattr(trial, "_try", endless)
    assert try_architecture(directory("granite"), 100_000, seconds=1) == {}
    assert time.monotonic() - started < 60
    assert signal.getsignal(signal.SIGALRM) == handler
