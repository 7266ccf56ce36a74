"""docs/models.md says of every architecture what is true."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from appliance.models.importing import import_model
from tests import architectures

ALL = sorted(architectures.kinds())


def test_the_matrix_lists_every_causal_language_model_of_transformers() -> None:
    assert sorted(architectures.read_rows()) == ALL


@pytest.mark.parametrize("kind", ALL)
def test_the_matrix_is_true(kind: str, request: pytest.FixtureRequest) -> None:
    if kind not in architectures.HANDFUL and not request.config.getoption("--stress"):
        pytest.skip("only with --stress")
    assert architectures.row(kind, architectures.outcomes(kind)) == architectures.read_rows()[kind]


SOME = (*architectures.HANDFUL, "deepseek_v3", "deepseek_v4", "minimax_m2", "mistral", "phi3", "qwen3_moe", "stablelm")
NOT_SMALL = {"laguna", "mllama", "olmo_hybrid"}  # the numbers of their layers do not follow the one that is made small


@pytest.mark.parametrize("kind", [kind for kind in ALL if kind not in NOT_SMALL])
def test_what_transformers_writes_is_imported(
    kind: str, tiny_model_dir: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """No check of keys, names or numbers refuses what a model of a kind is published as."""
    if kind not in SOME and not request.config.getoption("--stress"):
        pytest.skip("only with --stress")
    model = architectures.small(kind)
    if model is None:
        pytest.skip("no small model of it runs")
    architectures.store(model, tmp_path / "published")
    for file in tiny_model_dir.glob("*token*"):
        shutil.copy(file, tmp_path / "published")
    if not _reads_its_own(tmp_path / "published"):
        pytest.skip("transformers does not read what it wrote")
    import_model(tmp_path / "published", tmp_path / "imported")


def _reads_its_own(directory: Path) -> bool:
    from transformers import AutoModelForCausalLM

    try:
        AutoModelForCausalLM.from_pretrained(directory)
    except Exception:  # noqa: BLE001 - foreign architectures fail in every way
        return False
    return True
