"""The self-test draws by chance, and so do faults; here every test draws the same each time, but for `--stress`."""

from __future__ import annotations

import secrets
from functools import partial
from typing import Any

import numpy as np
import pytest

from appliance.audit import sampling


@pytest.fixture(autouse=True)
def fixed_chance(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, fixed_keys: None) -> None:
    """Fix what is drawn beside noise and samples, by the name of the test.

    A fault that is seen with a chance of 1 - 1e-3 would fail one run of the suite in a thousand.
    """
    if request.config.getoption("--stress"):
        return
    real, bits = np.random.default_rng, np.random.default_rng([1, *request.node.name.encode()])

    def seeded(seed: Any = None) -> np.random.Generator:
        return real(bits.integers(1 << 62) if seed is None else seed)

    monkeypatch.setattr(np.random, "default_rng", seeded)
    monkeypatch.setattr(sampling, "default_rng", seeded)
    monkeypatch.setattr(secrets, "randbits", partial(_randbits, bits))


def _randbits(bits: np.random.Generator, count: int) -> int:
    return int.from_bytes(bits.bytes(-(-count // 8)), "little") >> -count % 8
