"""What a run would need on this machine: memory and time, before anything is opened; and what fits instead.

The model's numbers are in the catalog and in its `config.json`; what memory there is, the kernel says, and of a GPU its
driver (`flows.run.room`); how fast the machine computes is in `flows.run.rates`. Everything here is public.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from appliance.errors import ConfigInvalid, IntegrityError
from appliance.estimate.memory import footprint
from appliance.estimate.pace import Seconds, gpu_seconds, run_seconds
from appliance.estimate.parts import Footprint, Workload
from appliance.estimate.shape import Shape, shape_of
from appliance.flows.catalog import find_model, imported, require_trainable
from appliance.flows.home import Home
from appliance.flows.run import rates, room
from appliance.flows.run.hardware import DEFAULT_TOKENS, has_fast_bfloat16
from appliance.flows.run.plan import Resolved
from appliance.flows.run.room import Need, Room
from appliance.jobs.job import EngineOptions
from appliance.jobs.limits import positions
from appliance.ledger.rows import ModelRow
from appliance.policy.run_file import RunFile


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a run needs, and what is there for it.

    Attributes:
      engine: how it would be computed.
      memory: of one process, where its model is.
      need, room: of all processes, the host's memory and a GPU's.
      time: None on a GPU whose rate was not measured yet.
    """

    engine: EngineOptions
    memory: Footprint
    need: Need
    room: Room
    time: Seconds | None


def shape(home: Home, row: ModelRow) -> Shape:
    """Read the numbers of an imported model.

    Raises:
      IntegrityError: its configuration cannot be read.
      ConfigInvalid: the configuration does not name its sizes, and the model was imported before they were noted.
    """
    where = home.model(row.sha256)
    try:
        with home.reader() as ledger:
            config = {**_configuration(home, row), **(imported(ledger, row).numbers or {})}
        stored = sum(file["bytes"] for file in orjson.loads(row.files) if file["path"].endswith(".safetensors"))
        linear = {name: (int(out), int(into)) for name, (out, into) in orjson.loads(row.shapes).items()}
        return shape_of(config, linear, row.parameters, stored)
    except KeyError as missing:
        problem = f"the configuration of model {row.id} does not state {missing.args[0]}"
        raise ConfigInvalid(problem, hint="import the model again: its sizes are then noted", where="base") from None
    except (OSError, ValueError, TypeError):
        raise IntegrityError(f"the configuration of model {row.id} cannot be read", where=str(where)) from None


def _configuration(home: Home, row: ModelRow) -> dict[str, Any]:
    where = home.model(row.sha256)
    try:
        config: dict[str, Any] = orjson.loads((where / "config.json").read_bytes())
    except (OSError, ValueError):
        raise IntegrityError(f"the configuration of model {row.id} cannot be read", where=str(where)) from None
    return config


def to_workload(home: Home, row: ModelRow, run: RunFile, engine: EngineOptions, grouped: bool) -> Workload:
    """Describe the run as the estimates see it.

    Raises:
      ConfigInvalid: a record may be longer than what the model reads; no record may be what shows it.
    """
    limit, asked = positions(_configuration(home, row)), run.train.max_tokens
    if limit is not None and asked > limit:
        hint = f"set train.max_tokens (--max-tokens) to {limit} or less"
        raise ConfigInvalid(f"model {row.id} reads at most {limit} tokens", hint=hint, where="train.max_tokens")
    return Workload(
        shape=shape(home, row), lora=run.lora, engine=engine, max_tokens=run.train.max_tokens, grouped=grouped
    )


def forecast(home: Home, resolved: Resolved, engine: EngineOptions, memory: int | None = None) -> Forecast:
    """Predict what the run needs, checked against the memory there is; its engine uses what that memory allows.

    Args:
      home: the appliance's home.
      resolved: the run with its plan.
      engine: how it would be computed.
      memory: bytes that may be used; None asks the kernel, or the GPU's driver.

    Raises:
      WillNotFit: it needs more memory than there is; the hint says what would fit.
      ConfigInvalid: the trial at import found that the model is not trained exactly in this dtype.
    """
    unit = resolved.plan.unit
    with home.reader() as ledger:
        require_trainable(ledger, resolved.model, engine.dtype)
    wanted = to_workload(home, resolved.model, resolved.run, engine, unit.max_records > 1)
    there = room.here(engine, memory)
    room.require(wanted, there)
    wanted = room.record_graphs(wanted, there)
    units = sum(phase.steps * phase.expected_batch_size for phase in resolved.plan.schedule)
    time = _time(home, wanted, units * unit.max_records, there.name)
    return Forecast(engine=wanted.engine, memory=footprint(wanted), need=room.need(wanted), room=there, time=time)


def _time(home: Home, wanted: Workload, records: int, gpu: str) -> Seconds | None:
    tokens, engine = float(records * wanted.max_tokens), wanted.engine
    if engine.device == "cpu":
        return run_seconds(wanted, tokens, rates.cpu(home), has_fast_bfloat16())
    rate = rates.gpu(home, gpu, engine.dtype)
    return None if rate is None else gpu_seconds(wanted, tokens, rate)


def fit_batch(home: Home, run: RunFile, engine: EngineOptions, memory: int | None = None) -> RunFile:
    """Give the run file the largest physical batch up to the default that fits; the smallest where none does.

    Args:
      home: the appliance's home.
      run: a run file.
      engine: device and dtype.
      memory: bytes that may be used; None asks the kernel, or the GPU's driver.
    """
    with home.rows() as rows:
        row = find_model(rows, run.base.id)
    unit = run.dataset.unit
    wanted = to_workload(home, row, run, engine, unit is not None and unit.max_records > 1)
    made = room.fit(wanted, DEFAULT_TOKENS[engine.device], room.here(engine, memory)).engine
    chosen = {name: getattr(made, name) for name in ("physical_tokens", "gradient_checkpointing")}
    return run.model_copy(update={"engine": run.engine.model_copy(update=chosen)})
