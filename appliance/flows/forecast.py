"""Memory and time of a run before any data is opened: arithmetic over the base model's shapes, public all of it.

The bytes that a layer keeps for its backward pass were counted on Llama shapes (tests/unit/flows/test_forecast.py counts
them again): per token two residual rows in float32, each norm's output where a trained A reads it, queries, keys, values and
the attention's output, three or four rows of the feed-forward width, one log-sum for each head, and u of every target.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import orjson

from appliance.errors import WillNotFit
from appliance.ledger.rows import ModelRow
from appliance.policy.run_file import RunFile
from appliance.records import OUTPUT_HEADS, EngineOptions, PrivacyPlan

PROCESS = 560 << 20
"""A worker with its libraries, before it loads a model (measured)."""

_GRADIENT_BYTES = 1 << 28  # as `appliance.train.engine`
_LOGITS = 1 << 24  # as `appliance.train.loss`
_BYTES = {"none": None, "nf4": 0.5 + 1 / 64 + 4 / 64 / 256, "int8": 1.0}
_HEAD = 64  # width of an attention head, where only the projections' shapes are known
_GPU_FLOPS = {"bfloat16": 1.2e14, "float32": 1.5e13}  # an A100 at 40 % of its peak; an estimate, not measured
_MARGIN = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a run will need.

    Attributes:
      memory: peak resident bytes of the worker, at the longest padded record.
      rows: records of that length in a micro-batch.
      seconds: of the whole run if every record is `max_tokens` long, which is an upper bound.
      measured: whether `seconds` rests on a multiplication timed on this machine (CPU), or on a table (GPU).
    """

    memory: int
    rows: int
    seconds: float
    measured: bool


def forecast(run: RunFile, base: ModelRow, plan: PrivacyPlan, engine: EngineOptions) -> Forecast:
    """Peak memory and time of `run` on `base` with these engine options."""
    shapes = {name: (int(out), int(into)) for name, (out, into) in orjson.loads(base.shapes).items()}
    parameters = run.lora.trainable(shapes)
    rows = _rows(run, engine, parameters)
    tokens = rows * run.train.max_tokens
    size = 2 if engine.dtype == "bfloat16" else 4
    layers = _layers(shapes)
    kept = [_kept(layer, run, size) * tokens for layer in layers.values()]
    widest = max(max(shape) for shape in shapes.values())
    hidden = min(into for name, (_, into) in shapes.items() if name.rsplit(".", 1)[-1] in ("q_proj", *OUTPUT_HEADS))
    if engine.gradient_checkpointing:
        activations = len(kept) * hidden * size * tokens + max(kept)
    else:
        activations = sum(kept)
    vocabulary = _vocabulary(shapes)
    logits = 8 * min(_LOGITS, vocabulary * run.train.max_tokens) + 3 * size * hidden * tokens
    feed = max((out for layer in layers.values() for out, _ in layer.values()), default=hidden)
    backward = 3 * size * feed * tokens + (size * _largest(shapes) if run.lora.quantize_base != "none" else 0)
    gradient = 4 if engine.gradient_dtype == "float32" else 2
    state = rows * parameters * gradient + parameters * (4 + 8)
    step = _weights(run, base, shapes, size) + state + activations + max(logits, backward) + 4 * widest
    release = _weights(run, base, shapes, size) + state + parameters * (8 * 4 + 4 * 6)
    load = _loading(run, base, shapes, size)
    seconds, measured = _seconds(run, shapes, plan, engine)
    return Forecast(memory=PROCESS + max(step, release, load), rows=rows, seconds=seconds, measured=measured)


def require_memory(found: Forecast, available: int) -> None:
    """Refuse a run whose predicted peak does not fit.

    Raises:
      WillNotFit: with what could be done.
    """
    if found.memory * (1 + _MARGIN) > available:
        raise WillNotFit(
            f"the run would need about {found.memory >> 20} MiB of memory, {available >> 20} MiB are available",
            hint="fewer --physical-tokens, a smaller max_tokens, lora.freeze_a or lora.quantize_base: nf4",
        )


def fitting(run: RunFile, base: ModelRow, plan: PrivacyPlan, engine: EngineOptions, available: int) -> EngineOptions:
    """`engine` with the largest physical_tokens, halved from what it names, whose peak fits in `available` bytes."""
    while forecast(run, base, plan, engine).memory * (1 + _MARGIN) > available:
        if engine.physical_tokens // 2 < run.train.max_tokens:
            break
        engine = engine.model_copy(update={"physical_tokens": engine.physical_tokens // 2})
    return engine


def _rows(run: RunFile, engine: EngineOptions, parameters: int) -> int:
    size = 4 if engine.gradient_dtype == "float32" else 2
    most = max(1, min(256, engine.physical_tokens // 8, _GRADIENT_BYTES // (size * parameters)))
    return max(1, min(most, engine.physical_tokens // run.train.max_tokens))


def _layers(shapes: dict[str, tuple[int, int]]) -> dict[str, dict[str, tuple[int, int]]]:
    """Linear modules by the decoder layer they belong to, short name to shape; the head belongs to none."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for name, shape in shapes.items():
        before, _, after = name.partition("layers.")
        if after:
            found.setdefault(before + after.split(".")[0], {})[after.partition(".")[2]] = shape
    return found


def _kept(layer: dict[str, tuple[int, int]], run: RunFile, size: int) -> int:
    """Bytes that one layer keeps of one token."""
    short = {name.rsplit(".", 1)[-1]: (name, shape) for name, shape in layer.items()}
    adapted = {key for key, (name, _) in short.items() if run.lora.selects(name)}
    inputs = set() if run.lora.freeze_a else adapted
    us = 4 * run.lora.r * len(adapted) if size == 4 else 2 * run.lora.r * len(adapted)
    if not {"q_proj", "k_proj", "v_proj", "gate_proj", "down_proj"} <= short.keys():  # not a Llama: everything is kept
        return sum(size * (out + into) for out, into in layer.values()) + us
    (query, hidden), (key, _) = short["q_proj"][1], short["k_proj"][1]
    norms = bool(inputs & {"q_proj", "k_proj", "v_proj"}) + bool(inputs & {"gate_proj", "up_proj"})
    feed = short["gate_proj"][1][0] * (4 if "down_proj" in inputs else 3)
    return hidden * (8 + size * norms) + size * (2 * query + 2 * key + feed) + 4 * query // _HEAD + us + 8


def _vocabulary(shapes: dict[str, tuple[int, int]]) -> int:
    return max((out for name, (out, _) in shapes.items() if name.rsplit(".", 1)[-1] in OUTPUT_HEADS), default=0)


def _largest(shapes: dict[str, tuple[int, int]]) -> int:
    return max(out * into for out, into in shapes.values())


def _weights(run: RunFile, base: ModelRow, shapes: dict[str, tuple[int, int]], size: int) -> int:
    per_value = _BYTES[run.lora.quantize_base]
    if per_value is None:
        return base.parameters * size
    linear = sum(out * into for name, (out, into) in shapes.items() if name.rsplit(".", 1)[-1] not in OUTPUT_HEADS)
    return round(linear * per_value) + (base.parameters - linear) * size


def _loading(run: RunFile, base: ModelRow, shapes: dict[str, tuple[int, int]], size: int) -> int:
    weights = _weights(run, base, shapes, size)
    if run.lora.quantize_base != "none":
        return weights + 6 * 4 * _largest(shapes)
    files = sum(file["bytes"] for file in orjson.loads(base.files) if file["path"].endswith(".safetensors"))
    same = abs(files - weights) < weights // 8  # then the weights are the mapped file itself
    return weights if same else weights + files


def _seconds(
    run: RunFile, shapes: dict[str, tuple[int, int]], plan: PrivacyPlan, engine: EngineOptions
) -> tuple[float, bool]:
    linear = sum(out * into for out, into in shapes.values())
    passes = 3 if engine.gradient_checkpointing else 2
    flops = 2.0 * linear * passes * plan.steps * plan.expected_batch_size * run.train.max_tokens
    if engine.device == "cuda":
        return flops / _GPU_FLOPS[engine.dtype], False
    return flops / (_cpu_flops() * (4 if engine.dtype == "bfloat16" else 1) * 0.5), True


def _cpu_flops() -> float:
    side = 512
    matrix = np.ones((side, side), dtype=np.float32)
    matrix @ matrix
    began = time.perf_counter()
    for _ in range(4):
        matrix @ matrix
    return 4 * 2 * side**3 / (time.perf_counter() - began)
