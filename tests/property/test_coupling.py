"""A record adds the same bits to the sum whatever its neighbours: random cases over threads, dtypes, architectures."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable

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


def run(cases: int, searched: Iterable[tuple[str, int, str]], *more: str) -> list[str]:
    """Threads are a setting of the process, and other tests of this one have theirs."""
    words = (str(cases), *(f"{kind}:{threads}:{dtype}" for kind, threads, dtype in searched), *more)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *words], cwd=ROOT, capture_output=True, text=True, check=False,
        env={"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


@pytest.mark.parametrize("kinds", [("llama", "qwen2", "odd"), ("gemma2", "deepseek_v3")], ids=",".join)
def test_no_record_couples(kinds: tuple[str, ...], stress_count: Callable[[int, int], int]) -> None:
    """Full counts: 1,000 cases over five architectures, eight thread counts and two dtypes."""
    searched = [(kind, *case) for kind in kinds for case in (CASES if stress_count(0, 1) else QUICK[kind])]
    assert run(stress_count(4, 13), searched) == ["0"] * len(searched)


def test_the_search_finds_what_threads_do(stress_count: Callable[[int, int], int]) -> None:
    """The evil twin: pointwise operations over the whole micro-batch, as torch cuts them."""
    assert run(stress_count(12, 100), [("llama", 6, "float32")], "whole") == ["1"]
