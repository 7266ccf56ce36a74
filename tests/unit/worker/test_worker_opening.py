"""Opening the base model of a job."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from appliance.errors import IntegrityError, WillNotFit
from appliance.jobs.job import EngineOptions
from appliance.store.trees import tree_digest
from appliance.worker.opening import load_base


@pytest.fixture
def short_products() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")  # TF32 on a GPU
    yield
    torch.set_float32_matmul_precision(before)


def test_products_in_float32_are_exact_whatever_the_default(tiny_model_dir: Path, short_products: None) -> None:
    load_base(str(tiny_model_dir), tree_digest(tiny_model_dir)[0], EngineOptions())
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_base_model_of_another_digest_is_refused(tiny_model_dir: Path) -> None:
    with pytest.raises(IntegrityError, match="not the one of the job"):
        load_base(str(tiny_model_dir), "0" * 64, EngineOptions())


def test_a_job_for_a_gpu_says_so_where_there_is_none(tiny_model_dir: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("not run: this machine has CUDA")
    with pytest.raises(WillNotFit, match="no GPU"):
        load_base(str(tiny_model_dir), tree_digest(tiny_model_dir)[0], EngineOptions(device="cuda"))
