"""What a run would need on this machine: memory and time, before anything is opened; and what fits instead.

The model's numbers are in the catalog and in its `config.json`; what the machine has, the kernel says. The machine's
rate of arithmetic is measured once and kept in the home, in `machine.json`; like everything here it is public.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import orjson

from appliance.errors import IntegrityError, WillNotFit
from appliance.estimate.memory import MIB, Asked, Footprint, footprint
from appliance.estimate.pace import Seconds, gigaflops, run_seconds
from appliance.estimate.shape import Shape, shape_of
from appliance.files import write_atomic
from appliance.flows.catalog import find_model
from appliance.flows.home import Home
from appliance.flows.run.hardware import DEFAULT_TOKENS, available_memory, has_fast_bfloat16
from appliance.flows.run.plan import Resolved
from appliance.jobs.job import EngineOptions
from appliance.jobs.plan import PrivacyPlan
from appliance.ledger.rows import ModelRow
from appliance.policy.run_file import RunFile
from appliance.privacy.accounting import rough_noise

MARGIN = 1.1
"""So much more than the estimate has to be there: runs that were measured took up to 5 % more."""
TOKENS = (8192, 4096, 2048, 1024, 512, 256, 128, 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a run needs. `available` is None on a GPU, whose memory the control plane does not see."""

    engine: EngineOptions
    memory: Footprint
    available: int | None
    time: Seconds | None


def shape(home: Home, row: ModelRow) -> Shape:
    """The numbers of an imported model.

    Raises:
      IntegrityError: its configuration cannot be read, or is not that of a decoder.
    """
    where = home.model(row.sha256)
    try:
        config = orjson.loads((where / "config.json").read_bytes())
        stored = sum(file["bytes"] for file in orjson.loads(row.files) if file["path"].endswith(".safetensors"))
        linear = {name: (int(out), int(into)) for name, (out, into) in orjson.loads(row.shapes).items()}
        return shape_of(config, linear, row.parameters, stored)
    except (OSError, ValueError, KeyError, TypeError):
        raise IntegrityError(f"the configuration of model {row.id} cannot be read", where=str(where)) from None


def asked(home: Home, row: ModelRow, run: RunFile, engine: EngineOptions, grouped: bool) -> Asked:
    """The run as the estimates see it."""
    return Asked(shape=shape(home, row), lora=run.lora, engine=engine, max_tokens=run.train.max_tokens, grouped=grouped)


def forecast(home: Home, resolved: Resolved, engine: EngineOptions, memory: int | None = None) -> Forecast:
    """What the run needs, checked against the memory there is.

    Args:
      home: the appliance's home.
      resolved: the run with its plan.
      engine: how it would be computed.
      memory: bytes that may be used; None asks the kernel.

    Raises:
      WillNotFit: it needs more memory than there is; the hint says what would fit.
    """
    unit = resolved.plan.unit
    wanted = asked(home, resolved.model, resolved.run, engine, unit.max_records > 1)
    needed = footprint(wanted)
    if engine.device == "cuda":
        return Forecast(engine=engine, memory=needed, available=None, time=None)
    available = available_memory() if memory is None else memory
    if needed.total * engine.nproc * MARGIN > available:
        raise _will_not_fit(wanted, needed.total * engine.nproc, available)
    plan = resolved.plan
    tokens = sum(phase.steps * phase.expected_batch_size for phase in plan.schedule) * unit.max_records
    time = run_seconds(wanted, float(tokens * resolved.run.train.max_tokens), rate(home), has_fast_bfloat16())
    return Forecast(engine=engine, memory=needed, available=available, time=time)


def sized(home: Home, run: RunFile, engine: EngineOptions, memory: int | None = None) -> RunFile:
    """The run file with the largest physical batch up to the default that fits; the smallest where none does.

    Args:
      home: the appliance's home.
      run: a run file.
      engine: device and dtype.
      memory: bytes that may be used; None asks the kernel.
    """
    tokens = _fitting(home, run, engine, available_memory() if memory is None else memory)
    return run.model_copy(update={"engine": run.engine.model_copy(update={"physical_tokens": tokens})})


def _fitting(home: Home, run: RunFile, engine: EngineOptions, memory: int) -> int:
    if engine.device == "cuda":
        return DEFAULT_TOKENS[engine.device]
    with home.rows() as rows:
        row = find_model(rows, run.base.id)
    unit = run.dataset.unit
    wanted = asked(home, row, run, engine, unit is not None and unit.max_records > 1)
    return largest_fitting(wanted, DEFAULT_TOKENS[engine.device], memory)


def largest_fitting(wanted: Asked, most: int, memory: int) -> int:
    """The largest physical batch in tokens, up to `most`, that fits into `memory`; the smallest where none does."""
    for tokens in TOKENS:
        if tokens <= most and footprint(_changed(wanted, physical_tokens=tokens)).total * MARGIN <= memory:
            return tokens
    return TOKENS[-1]


def rate(home: Home) -> float:
    """This machine's rate of arithmetic, measured at the first call and kept in the home."""
    path = home.root / "machine.json"
    try:
        return float(orjson.loads(path.read_bytes())["gigaflops"])
    except (OSError, ValueError, KeyError, TypeError):
        found = round(gigaflops(), 1)
        with suppress(OSError):  # a home that may only be read
            write_atomic(path, orjson.dumps({"schema": "appliance.machine/1", "gigaflops": found}))
        return found


def alternatives(plan: PrivacyPlan) -> Iterator[tuple[float, int, int, float, float]]:
    """The trade-off: (epsilon, steps, batch, noise multiplier, noise per unit of batch) around a plan.

    The noise multiplier is right to about a hundredth; what a run gets is calibrated finely. The last number is the
    noise's standard deviation, in clip norms, in the mean over an expected batch: the smaller, the better the model.
    """
    spares, delta = plan.spare_steps, plan.delta - plan.sampler_delta
    for epsilon in (plan.epsilon / 2, plan.epsilon, plan.epsilon * 2):
        for steps, batch in ((plan.steps, plan.expected_batch_size), *_others(plan)):
            rates = [(type(plan.sample_rate)(batch, plan.declared_units), steps + spares)]
            noise = rough_noise(rates, epsilon, delta)
            yield epsilon, steps, batch, noise, noise / batch


def _others(plan: PrivacyPlan) -> list[tuple[int, int]]:
    """Half and twice the steps at the same number of passes over the data, and twice the batch at the same steps."""
    steps, batch, units = plan.steps, plan.expected_batch_size, plan.declared_units
    found = [
        (max(1, steps // 2), min(units, 2 * batch)),
        (2 * steps, max(1, batch // 2)),
        (steps, min(units, 2 * batch)),
    ]
    return [pair for pair in dict.fromkeys(found) if pair != (steps, batch)]


def _changed(wanted: Asked, **engine: Any) -> Asked:
    from dataclasses import replace

    return replace(wanted, engine=wanted.engine.model_copy(update=engine))


def _will_not_fit(wanted: Asked, needed: int, available: int) -> WillNotFit:
    from dataclasses import replace

    options = {
        **{f"physical_tokens: {n}": _changed(wanted, physical_tokens=n) for n in (512, 256, 128)},
        "gradient_checkpointing: true": _changed(wanted, gradient_checkpointing=True),
        "freeze_a: true": replace(wanted, lora=wanted.lora.model_copy(update={"freeze_a": True})),
        "quantize_base: nf4": replace(wanted, lora=wanted.lora.model_copy(update={"quantize_base": "nf4"})),
        "max_tokens: 256": replace(wanted, max_tokens=min(256, wanted.max_tokens)),
    }
    best = _changed(options["quantize_base: nf4"], physical_tokens=128, gradient_checkpointing=True)
    options["quantize_base: nf4, physical_tokens: 128 and gradient_checkpointing: true"] = best
    fitting = [
        name for name, one in options.items() if footprint(one).total * wanted.engine.nproc * MARGIN <= available
    ]
    hint = f"what would fit: {'; or '.join(fitting[:4])}" if fitting else "nothing short of a smaller model would fit"
    return WillNotFit(f"the run needs about {needed // MIB} MiB of memory, {available // MIB} MiB are there", hint=hint)
