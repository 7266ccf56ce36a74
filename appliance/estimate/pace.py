"""How long a run takes: arithmetic counted from the model's numbers, over a rate that was measured on this machine.

An honest range and no more: what a machine reaches of its rate depends on sizes, on the dtype and on who else computes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from appliance.estimate.parts import Workload

SLOWEST, FASTEST = 0.3, 1.0
"""Share of the rate of one large float32 product that training reaches. An assumption, not yet measured."""
GPU_SLOWEST, GPU_FASTEST = 0.05, 0.85
"""The same on a GPU, of the rate in the run's own dtype; on an H100 0.08 (135M) to 0.82 (float32) were seen."""
BFLOAT16 = 3.0
"""How much faster bfloat16 is on a CPU that multiplies it in hardware: a step of SmolLM2 gained 2.6 times."""
START_S = (15.0, 90.0)
"""Seconds for the worker's start, its proofs and the engine self-test."""

_SIZE = 1024


@dataclass(frozen=True, slots=True)
class Seconds:
    """A range of time."""

    least: float
    most: float


def gigaflops() -> float:
    """Measure 10^9 floating-point operations per second of a float32 matrix product on all cores: the best of three."""
    import numpy as np

    left = np.ones((_SIZE, _SIZE), dtype=np.float32)
    best = 0.0
    for _ in range(4):
        started = time.perf_counter()
        left @ left
        best = max(best, 2e-9 * _SIZE**3 / (time.perf_counter() - started))
    return best


def operations(workload: Workload, length: int) -> float:
    """Count the floating-point operations for one token of a record of `length` tokens, forward and backward.

    Two for each weight forward and two backward (the base's weights have no gradient), two more where a layer is
    computed again; attention's products; the head at every position, as if all were supervised.
    """
    shape = workload.shape
    idle = 0.0
    if shape.experts is not None:
        layers = shape.layers - shape.experts.dense_layers
        idle = 3.0 * shape.hidden * shape.experts.width * layers * (shape.experts.count - shape.experts.chosen)
    embedding = shape.hidden * shape.vocabulary
    active = max(0.0, shape.parameters - embedding - idle)
    attention = 2.0 * length * shape.heads * shape.head_dim * shape.layers
    passes = 6 if workload.engine.gradient_checkpointing else 4
    return passes * (active + attention) + 8.0 * workload.parameters


def run_seconds(workload: Workload, tokens: float, rate: float, fast_bfloat16: bool) -> Seconds:
    """Predict the time to train on `tokens` tokens in all.

    Args:
      workload: model, adapter and options.
      tokens: over all steps.
      rate: what `gigaflops` found.
      fast_bfloat16: whether this CPU multiplies bfloat16 in hardware.
    """
    speed = rate * 1e9
    if workload.element == 2:
        speed *= BFLOAT16 if fast_bfloat16 else 0.5
    work = tokens * operations(workload, workload.max_tokens) / speed
    return Seconds(START_S[0] + work / FASTEST, START_S[1] + work / SLOWEST)


def gpu_seconds(workload: Workload, tokens: float, rate: float) -> Seconds:
    """Predict the same on GPUs, one for each process; `rate` is that of one in the run's dtype."""
    work = tokens * operations(workload, workload.max_tokens) / (rate * 1e9 * workload.engine.nproc)
    return Seconds(START_S[0] + work / GPU_FASTEST, START_S[1] + work / GPU_SLOWEST)
