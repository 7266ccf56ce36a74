"""One recorded run and its bundle, built once; each test gets a copy."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.export.sealed import make_bundle


@pytest.fixture(scope="session")
def bundled(built_once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """`home/`, `released/`, `bundle/` and `keys.txt` of run_1; not to be altered."""
    return built_once("sealed-bundle", make_bundle)


@pytest.fixture
def copied(bundled: Path, tmp_path: Path) -> Path:
    """A copy of `bundled` that a test may alter."""
    return Path(shutil.copytree(bundled, tmp_path / "copy"))
