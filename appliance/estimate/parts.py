"""What a run asks for, and what of it lies in memory alike on the CPU and on a GPU: weights, adapter, gradients."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.estimate.shape import Shape
from appliance.jobs.job import EngineOptions
from appliance.jobs.lora import LoraSpec

MIB = 1 << 20
FLOAT = 4

# As in `train.engine`, `train.loss`, `train.lora` and `train.encode`; a test compares them.
MAX_ROWS, BLOCK = 256, 1024
PIECE_ROWS = {"cpu": 128, "cuda": 384}


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What a run asks of the machine: the model, the adapter, how it is computed, the longest record.

    Attributes:
      grouped: whether a unit of privacy may have several records, whose gradients are first summed.
    """

    shape: Shape
    lora: LoraSpec
    engine: EngineOptions
    max_tokens: int
    grouped: bool = False

    @property
    def element(self) -> int:
        """Bytes of a value of the dtype that is computed in."""
        return FLOAT if self.engine.dtype == "float32" else 2

    @property
    def parameters(self) -> int:
        """Size of the adapter."""
        return self.lora.trainable(self.shape.linear)


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Bytes at the peak, by purpose, where the model is: in a worker's memory, or in that of its GPU."""

    libraries: int
    weights: int
    adapter: int
    gradients: int
    activations: int
    working: int

    @property
    def total(self) -> int:
        """All of it together."""
        return self.libraries + self.weights + self.adapter + self.gradients + self.activations + self.working


def micro_batch(physical_tokens: int, max_tokens: int) -> tuple[int, int]:
    """Find (tokens, padded length) of the largest micro-batch: of all public lengths, the one that fills up most."""
    lengths = [8]
    while lengths[-1] < max_tokens:
        lengths.append(lengths[-1] + max(8, lengths[-1] * 12 // 100 // 8 * 8))
    return max((max(1, min(MAX_ROWS, physical_tokens // length)) * length, length) for length in lengths)


def weight_bytes(workload: Workload) -> int:
    """Count the base model in memory: linear layers quantised where that is asked for, the rest in the dtype."""
    shape, kind = workload.shape, workload.lora.quantize_base
    if kind == "none":
        return shape.parameters * workload.element
    quantised = {name: pair for name, pair in shape.linear.items() if not name.endswith("lm_head")}
    values = sum(out * into for out, into in quantised.values())
    # NF4: half a byte, and for each block of 64 an 8-bit scale. INT8: a byte, and a float32 scale for each row.
    small = values * (0.5 + 1 / 64) if kind == "nf4" else values + FLOAT * sum(out for out, _ in quantised.values())
    return round(small) + (shape.parameters - values) * workload.element


def largest_linear(shape: Shape) -> int:
    """Count the values of the largest weight of a linear layer, the output head left out."""
    return max(out * into for name, (out, into) in shape.linear.items() if not name.endswith("lm_head"))


def adapter_bytes(workload: Workload) -> int:
    """Count A and B, AdamW's two moments, the exact sum in float64; in bfloat16 also the copies that forward makes."""
    copies = 2 if workload.element == 2 else 0
    return workload.parameters * (3 * FLOAT + 8 + copies)


def buffer_rows(workload: Workload) -> int:
    """Count the rows of the buffer of per-record gradients: the most records that are ever computed at once."""
    room = workload.engine.gradient_bytes // (_gradient_value(workload) * max(1, workload.parameters))
    return max(1, min(MAX_ROWS, workload.engine.physical_tokens // 8, room))


def gradient_bytes(workload: Workload) -> int:
    """Count the buffer of per-record gradients, and that of the sums of units that have several records."""
    width = -(-max(1, workload.parameters) // BLOCK) * BLOCK
    return buffer_rows(workload) * width * (_gradient_value(workload) + (FLOAT if workload.grouped else 0))


def _gradient_value(workload: Workload) -> int:
    return FLOAT if workload.engine.gradient_dtype == workload.engine.dtype == "float32" else 2
