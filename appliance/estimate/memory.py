"""Peak resident memory of a training worker, in closed form. Depends on nothing private: it holds for any records.

Its constants are fitted to runs that `bench/memory.py` names; `bench/RESULTS.md` compares it with these and others.
GPUs are counted in the same way but were not measured.

The peak is taken where a full micro-batch's activations, the per-record gradients and what backward needs besides lie
in memory together. `bench/memory.py` compares it with the measured peak.
"""

from __future__ import annotations

from dataclasses import dataclass

from appliance.estimate.activations import layer_bytes
from appliance.estimate.shape import Shape
from appliance.jobs.job import EngineOptions
from appliance.jobs.lora import LoraSpec

MIB = 1 << 20
LIBRARIES = 470 * MIB
"""The interpreter with torch 2.13, transformers 5, PEFT 0.21 and Opacus 1.6, CPU builds: fitted, like all below. After
the imports 372 MiB are resident; the rest comes with first use."""
BITSANDBYTES = 28 * MIB
KERNELS = 249 * MIB
"""In bfloat16 the CPU's library keeps compiled kernels, as many as `flows.launch.KERNEL_CACHES` allows."""
ACTIVATIONS_HELD, WORKING_HELD = {"float32": 1.53, "bfloat16": 1.22}, 1.07
"""The allocator keeps much of what was freed between tensors of other sizes; multiples of what is live."""

# As in `train.engine`, `train.loss`, `train.lora` and `train.encode`; a test compares them.
GRADIENT_BYTES, MAX_ROWS, BLOCK = 1 << 28, 256, 1024
PIECE_ROWS = {"cpu": 128, "cuda": 1024}

_FLOAT = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
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
        return _FLOAT if self.engine.dtype == "float32" else 2

    @property
    def parameters(self) -> int:
        """Size of the adapter."""
        return self.lora.trainable(self.shape.linear)


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Bytes of a worker at its peak, by purpose."""

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


def footprint(asked: Asked) -> Footprint:
    """The peak of a run, for whatever records there may be."""
    tokens, length = micro_batch(asked.engine.physical_tokens, asked.max_tokens)
    return Footprint(
        libraries=_libraries(asked),
        weights=weight_bytes(asked),
        adapter=_adapter(asked),
        gradients=_gradients(asked),
        activations=round(ACTIVATIONS_HELD[asked.engine.dtype] * _activations(asked, tokens, length)),
        working=round(WORKING_HELD * _working(asked, tokens, length)),
    )


def _libraries(asked: Asked) -> int:
    kernels = KERNELS if asked.engine.dtype == "bfloat16" else 0
    return LIBRARIES + kernels + (BITSANDBYTES if asked.lora.quantize_base != "none" else 0)


def micro_batch(physical_tokens: int, max_tokens: int) -> tuple[int, int]:
    """(tokens, padded length) of the largest micro-batch: of all public lengths, the one that fills up most."""
    lengths = [8]
    while lengths[-1] < max_tokens:
        lengths.append(lengths[-1] + max(8, lengths[-1] * 12 // 100 // 8 * 8))
    return max((max(1, min(MAX_ROWS, physical_tokens // length)) * length, length) for length in lengths)


def weight_bytes(asked: Asked) -> int:
    """The base model in memory: linear layers quantised where that is asked for, the rest in the dtype."""
    shape, kind = asked.shape, asked.lora.quantize_base
    if kind == "none":
        return shape.parameters * asked.element
    quantised = {name: pair for name, pair in shape.linear.items() if not name.endswith("lm_head")}
    values = sum(out * into for out, into in quantised.values())
    # NF4: half a byte, and for each block of 64 an 8-bit scale. INT8: a byte, and a float32 scale for each row.
    small = values * (0.5 + 1 / 64) if kind == "nf4" else values + _FLOAT * sum(out for out, _ in quantised.values())
    return round(small) + (shape.parameters - values) * asked.element


def _adapter(asked: Asked) -> int:
    """A and B, AdamW's two moments, the exact sum in float64; in bfloat16 also the copies that forward makes."""
    copies = 2 if asked.element == 2 else 0
    return asked.parameters * (3 * _FLOAT + 8 + copies)


def buffer_rows(asked: Asked) -> int:
    """Rows of the buffer of per-record gradients: the most records that are ever computed at once."""
    room = GRADIENT_BYTES // (_gradient_value(asked) * max(1, asked.parameters))
    return max(1, min(MAX_ROWS, asked.engine.physical_tokens // 8, room))


def _gradient_value(asked: Asked) -> int:
    return _FLOAT if asked.engine.gradient_dtype == asked.engine.dtype == "float32" else 2


def _gradients(asked: Asked) -> int:
    width = -(-max(1, asked.parameters) // BLOCK) * BLOCK
    return buffer_rows(asked) * width * (_gradient_value(asked) + (_FLOAT if asked.grouped else 0))


def _activations(asked: Asked, tokens: int, length: int) -> float:
    """All layers at once; with checkpointing two layers', the one computed again and the last, and all inputs."""
    shape = asked.shape
    each = [layer_bytes(shape, asked.lora, asked.element, length, index) * tokens for index in range(shape.layers)]
    if asked.engine.gradient_checkpointing:
        return min(sum(each), 2 * max(each) + shape.layers * shape.hidden * asked.element * tokens)
    return sum(each)


def _working(asked: Asked, tokens: int, length: int) -> float:
    """What comes on top: hidden states and their gradient, and the larger of the head's and one layer's buffers."""
    shape, e = asked.shape, asked.element
    hidden = 3 * shape.hidden * e * tokens
    head = PIECE_ROWS[asked.engine.device] * shape.vocabulary * 2 * _FLOAT
    return hidden + max(head, _layer(asked, tokens, length)) + _dequantised(asked)


def _layer(asked: Asked, tokens: int, length: int) -> float:
    shape, e = asked.shape, asked.element
    probabilities = 3 * _FLOAT * shape.heads * length if shape.latent else 0
    return tokens * (3 * shape.intermediate * e + 4 * shape.hidden * e + probabilities)


def _dequantised(asked: Asked) -> float:
    """The largest layer's weight, dequantised for one product."""
    if asked.lora.quantize_base == "none":
        return 0
    largest = max(out * into for name, (out, into) in asked.shape.linear.items() if not name.endswith("lm_head"))
    return largest * (asked.element + (_FLOAT if asked.lora.quantize_base == "nf4" else 0))
