"""A record adds the same bits to the sum whatever its neighbours: random cases over threads, dtypes, architectures."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import MEDIA

ROOT = MEDIA.parent
CASES = [(threads, dtype) for threads in (1, 2, 3, 5, 6, 7, 8, 16) for dtype in ("float32", "bfloat16")]
QUICK = {
    "llama": [(2, "bfloat16"), (6, "float32")],
    "qwen2": [(2, "float32")],
    "odd": [(2, "float32")],
    "gemma2": [(2, "float32")],
    "deepseek_v3": [(2, "float32"), (2, "bfloat16")],
}
"""What `make test` looks at of it."""
SCRIPT = "from tests.property import coupling; coupling.main()"


def run(*arguments: Any) -> list[str]:
    """Threads are a setting of the process, and other tests of this one have theirs."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False,
        env={"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


@pytest.mark.parametrize("kind", ["llama", "qwen2", "odd", "gemma2", "deepseek_v3"])
def test_no_record_couples(kind: str, stress_count: Callable[[int, int], int]) -> None:
    """Full counts: 1,000 cases over five architectures, eight thread counts and two dtypes."""
    for threads, dtype in CASES if stress_count(0, 1) else QUICK[kind]:
        assert run(kind, threads, dtype, stress_count(4, 13)) == ["0"]


def test_the_search_finds_what_threads_do(stress_count: Callable[[int, int], int]) -> None:
    """The evil twin: pointwise operations over the whole micro-batch, as torch cuts them."""
    found = run("llama", 6, "float32", stress_count(12, 100), "whole")
    assert int(found[0]) > 0
