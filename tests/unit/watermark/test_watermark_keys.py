"""The signs of a module: golden vectors, and nothing but the four inputs decides."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from appliance.errors import KeyUnavailable
from appliance.watermark.keys import escrow_key, module_key, owner_role, signs

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "watermark" / "signs.json").read_text())


@pytest.mark.parametrize("vector", VECTORS["signs"], ids=lambda v: f"{v['outputs']}x{v['inputs']}x{v['rank']}")
def test_signs_are_those_of_the_golden_vectors(vector: dict[str, object]) -> None:
    master = bytes.fromhex(str(vector["master"]))
    key = module_key(master, str(vector["model_sha256"]), str(vector["role"]), str(vector["module"]))
    assert key.hex() == vector["module_key"]
    y, x = signs(key, int(vector["outputs"]), int(vector["inputs"]), int(vector["rank"]))  # type: ignore[call-overload]
    packed = np.packbits((torch.cat([y, x]).flatten() < 0).numpy(), bitorder="little").tobytes()
    assert packed[:16].hex() == vector["first_bytes"]
    assert hashlib.sha256(packed).hexdigest() == vector["sha256"]


def test_signs_are_balanced_signs() -> None:
    y, x = signs(bytes(32), 500, 300, 8)
    both = torch.cat([y, x])
    assert (y.shape, x.shape) == ((500, 8), (300, 8))
    assert set(both.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(both.mean())) < 4 / both.numel() ** 0.5


def test_every_input_decides_and_none_runs_into_the_next() -> None:
    master = bytes(32)
    keys = {
        module_key(master, "a", "b", "c"),
        module_key(master, "ab", "", "c"),
        module_key(master, "a", "bc", ""),
        module_key(master, "a", "b", "d"),
        module_key(bytes([1, *bytes(31)]), "a", "b", "c"),
        escrow_key(master, "a"),
        escrow_key(master, "b"),
    }
    assert len(keys) == 7
    assert owner_role("run_1") != owner_role("run_2")


def test_a_short_master_is_refused() -> None:
    with pytest.raises(KeyUnavailable):
        module_key(bytes(31), "a", "b", "c")
