"""The memory that a run may use here: whether it fits, what does, and the refusal that says so.

On the CPU there is one memory, which all processes of a run share. With GPUs there are two: each process has a GPU of
its own, and the host's memory, through which the weights pass, is shared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from appliance.errors import WillNotFit
from appliance.estimate.gpu_memory import host_bytes
from appliance.estimate.memory import footprint
from appliance.estimate.parts import MIB, Workload
from appliance.flows.run.hardware import available_memory, smallest_gpu
from appliance.jobs.job import EngineOptions

MARGIN = 1.1
"""So much more than the estimate has to be there: runs that were measured took up to 5 % more."""
TOKENS = (8192, 4096, 2048, 1024, 512, 256, 128, 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """Memory in bytes.

    Attributes:
      host: of this machine, for all processes together.
      gpu: of the GPU that each process has; None on the CPU, and where the driver does not say.
      name: of the smallest GPU that would be used; empty where it is not known.
    """

    host: int
    gpu: int | None = None
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Memory in bytes: of each process's GPU (0 on the CPU), and of the host for all of them."""

    gpu: int
    host: int


def here(engine: EngineOptions, memory: int | None = None) -> Room:
    """Ask what this machine has free for a run.

    Args:
      engine: on what device, in how many processes.
      memory: bytes to count on, instead of what kernel or driver say: of the GPU where the run computes on one.

    Raises:
      WillNotFit: fewer GPUs than processes.
    """
    if engine.device == "cpu":
        return Room(host=available_memory() if memory is None else memory)
    if memory is not None:
        return Room(host=available_memory(), gpu=memory)
    gpu = smallest_gpu(engine.nproc)
    return Room(host=available_memory(), gpu=gpu.free if gpu else None, name=gpu.name if gpu else "")


def need(wanted: Workload) -> Need:
    """Predict what a run takes at its peak."""
    processes = wanted.engine.nproc
    if wanted.engine.device == "cpu":
        return Need(gpu=0, host=footprint(wanted).total * processes)
    return Need(gpu=footprint(wanted).total, host=host_bytes(wanted) * processes)


def fits(wanted: Workload, room: Room) -> bool:
    """Tell whether a run fits; a GPU of which nothing is known is taken to be large enough."""
    needed = need(wanted)
    return (room.gpu is None or needed.gpu * MARGIN <= room.gpu) and needed.host * MARGIN <= room.host


def record_graphs(wanted: Workload, room: Room) -> Workload:
    """Give the run CUDA graphs, if it computes on a GPU and its memory is known to hold them."""
    engine, experts = wanted.engine, wanted.shape.experts
    made = change_engine(
        wanted, cuda_graphs=engine.device == "cuda" and not engine.gradient_checkpointing and not experts
    )
    return made if room.gpu is not None and fits(made, room) else wanted


def fit(wanted: Workload, most: int, room: Room) -> Workload:
    """Give the run the largest physical batch up to `most` tokens that fits.

    Activations are recomputed only where nothing fits without. Where nothing fits at all: the smallest batch.
    """
    for checkpointing in dict.fromkeys((wanted.engine.gradient_checkpointing, True)):
        for tokens in TOKENS:
            made = change_engine(wanted, physical_tokens=tokens, gradient_checkpointing=checkpointing)
            if tokens <= most and fits(made, room):
                return made
    return change_engine(wanted, physical_tokens=TOKENS[-1])


def change_engine(wanted: Workload, **engine: Any) -> Workload:
    """Give the run other engine options."""
    return replace(wanted, engine=wanted.engine.model_copy(update=engine))


def require(wanted: Workload, room: Room) -> None:
    """Raise `WillNotFit` unless the run fits; its hint names what would."""
    if fits(wanted, room):
        return
    needed = need(wanted)
    whose, bytes_, there = "the host's ", needed.host, room.host
    if room.gpu is not None and needed.gpu * MARGIN > room.gpu:
        whose, bytes_, there = "the GPU's ", needed.gpu, room.gpu
    if wanted.engine.device == "cpu":
        whose = ""
    fitting = [*dict.fromkeys(_difference(wanted, one) for one in _list_others(wanted, room) if fits(one, room))]
    hint = f"what would fit: {'; or '.join(fitting[:4])}" if fitting else "nothing short of a smaller model would fit"
    message = f"the run needs about {bytes_ // MIB} MiB of {whose}memory, {there // MIB} MiB are there"
    raise WillNotFit(message, hint=hint)


def _list_others(wanted: Workload, room: Room) -> Iterator[Workload]:
    """List what else could be asked for, the least change first."""
    most, lora = wanted.engine.physical_tokens, wanted.lora
    quantised = replace(wanted, lora=lora.model_copy(update={"quantize_base": "nf4"}))
    yield fit(wanted, most, room)
    yield change_engine(wanted, gradient_checkpointing=True)
    yield replace(wanted, lora=lora.model_copy(update={"freeze_a": True}))
    yield quantised
    yield fit(quantised, most, room)
    yield replace(wanted, max_tokens=min(256, wanted.max_tokens))
    yield change_engine(wanted, nproc=1)


def _difference(wanted: Workload, one: Workload) -> str:
    """Say what of a run file, or of the command line, has to be changed for it."""
    engine = one.engine
    changes = {
        "quantize_base: nf4": one.lora.quantize_base != wanted.lora.quantize_base,
        "freeze_a: true": one.lora.freeze_a != wanted.lora.freeze_a,
        "gradient_checkpointing: true": engine.gradient_checkpointing != wanted.engine.gradient_checkpointing,
        f"physical_tokens: {engine.physical_tokens}": engine.physical_tokens != wanted.engine.physical_tokens,
        f"max_tokens: {one.max_tokens}": one.max_tokens != wanted.max_tokens,
        f"--nproc {engine.nproc}": engine.nproc != wanted.engine.nproc,
    }
    return " with ".join(name for name, made in changes.items() if made)
