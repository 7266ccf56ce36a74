"""The memory estimate of `train plan --device cuda` against a GPU: `python bench/memory.py --device cuda [--native]`.

All cases run in one process on models with random weights, which are made on the GPU. For each it prints what
`appliance.estimate.gpu_memory` says, what torch's allocator handed out and kept at most, and what the driver counts;
and from these what the module's constants would have to be. Time comes along: tokens per second of the largest
micro-batch, and what share that is of the card's own rate, for `appliance.estimate.pace`.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from appliance.estimate import gpus
from appliance.estimate.gpu_memory import HELD
from appliance.estimate.memory import footprint
from appliance.estimate.pace import operations
from appliance.estimate.parts import Workload, micro_batch
from appliance.jobs.job import EngineOptions
from appliance.jobs.lora import LoraSpec
from appliance.train.adapting import adapt
from appliance.train.encode import Encoded, buckets
from appliance.train.engine import Engine
from appliance.train.optimizer import ExactDPOptimizer
from appliance.worker.rates import gigaflops
from tests.shapes import MODELS, numbers, on_meta
from tests.unit.train.rig import NoNoise, plan

GRADIENT_BYTES = (80 << 30) // 32  # as `flows.run.hardware` chooses for 80 GiB
_MIB = 1 << 20


@dataclass(kw_only=True)
class Case:
    """One configuration.

    Attributes:
      graphs: whether CUDA graphs record it; not with checkpointing, nor where experts would be routed.
      held: MiB that torch's allocator held for it on an H100, when a piece of logits had `PIECE_THEN` rows; or 0.
    """

    model: str
    lora: dict[str, Any] = field(default_factory=lambda: {"freeze_a": True})
    tokens: int = 8192
    max_tokens: int = 512
    dtype: str = "bfloat16"
    checkpointing: bool = False
    graphs: bool = True
    held: int = 0

    def workload(self, model: Any, device: str) -> Workload:
        """The case as the estimates see it; `model` is not yet adapted or quantised."""
        options = EngineOptions(
            device=device, dtype=self.dtype, physical_tokens=self.tokens,  # type: ignore[arg-type]
            gradient_checkpointing=self.checkpointing, gradient_bytes=GRADIENT_BYTES,
            cuda_graphs=self.graphs and not self.checkpointing,
        )  # fmt: skip
        return Workload(shape=numbers(model), lora=LoraSpec(**self.lora), engine=options, max_tokens=self.max_tokens)


PIECE_THEN = 1024
_NF4 = {"freeze_a": True, "quantize_base": "nf4"}
CASES = [
    Case(model="8b", lora={"r": 16, "quantize_base": "nf4"}, tokens=4096, max_tokens=1024, checkpointing=True),
    Case(model="1b", lora={"quantize_base": "nf4"}, tokens=16384, max_tokens=1024, checkpointing=True),
    Case(model="135m", dtype="float32", tokens=2048, max_tokens=1024, graphs=False),
    Case(model="qwen3", lora={"r": 16}, tokens=2048),
    Case(model="qwen2", lora={"freeze_a": True, "quantize_base": "int8"}, tokens=4096),
    Case(model="equal-heads", lora={"r": 32}, tokens=8192, checkpointing=True),
    Case(model="deepseek", lora={"r": 16}, graphs=False),
    Case(model="8b", lora=_NF4, checkpointing=True, held=12856),
    Case(model="8b", lora=_NF4, tokens=2048, held=24870),
    Case(model="1b", lora={"r": 16, "freeze_a": True}, tokens=4096, max_tokens=1024, held=14858),
    Case(model="135m", lora={}, tokens=16384, max_tokens=1024, held=20142),
    Case(model="qwen3", lora=_NF4, tokens=4096, held=12914),
    Case(model="qwen2", lora={}, max_tokens=1024, checkpointing=True, held=8222),
    Case(model="deepseek", tokens=4096, dtype="float32", graphs=False, held=2446),
    Case(model="135m", held=8462),
    Case(model="135m", lora={"r": 32}, tokens=4096, held=8208),
    Case(model="135m", dtype="float32", tokens=4096, held=11592),
    Case(model="1b", held=21944),
    Case(model="1b", lora={}, max_tokens=2048, checkpointing=True, held=7228),
    Case(model="1b", lora={"freeze_a": True, "quantize_base": "int8"}, tokens=2048, held=8656),
    Case(model="equal-heads", dtype="float32", lora={}, tokens=4096, held=7592),
    Case(model="qwen3", lora={}, held=28326),
    Case(model="qwen2", held=34746),
    Case(model="deepseek", lora={}, held=4236),
]
"""The constants of `estimate.gpu_memory` were fitted to what is known to have been held; the first seven judge them."""


class Meter:
    """What a GPU's memory is taken by, in bytes. The stand-in of the tests answers without a GPU."""

    def __init__(self) -> None:
        self._before = self._free()

    def start(self) -> None:
        """Forget the peaks."""
        torch.cuda.reset_peak_memory_stats()

    def synchronise(self) -> None:
        """Wait for the GPU."""
        torch.cuda.synchronize()

    def peaks(self) -> dict[str, int]:
        """Handed out and kept at most; and what the driver counts now, when nothing was given back yet."""
        free, total = torch.cuda.mem_get_info()
        found = self._free()
        used = total - free if found is None or self._before is None else self._before - found
        return {
            "allocated": torch.cuda.max_memory_allocated(),
            "reserved": torch.cuda.max_memory_reserved(),
            "context": used - torch.cuda.memory_reserved(),
        }

    def _free(self) -> int | None:
        found = gpus.visible()
        return found[0].free if found else None


def build(case: Case, device: str) -> tuple[Any, Workload]:
    """The model of a case with random weights on the device, quantised if asked for."""
    model = on_meta(MODELS[case.model], getattr(torch, case.dtype))
    workload = case.workload(model, device)
    if workload.lora.quantize_base != "none":
        quantise(model, workload.lora.quantize_base, device)
    memo: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, value in module._parameters.items():
            if value is not None and value.is_meta:
                made = torch.empty(value.shape, dtype=value.dtype, device=device).normal_(0, 0.02)
                made = made if value.dim() > 1 else made.fill_(1)
                module._parameters[name] = memo.setdefault(id(value), torch.nn.Parameter(made, requires_grad=False))
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = torch.linspace(1, 1e-4, buffer.numel(), device=device).view(buffer.shape)
    return model.eval(), workload


def quantise(model: Any, kind: str, device: str) -> None:
    """Puts quantised layers with random weights in the place of all linear layers but the head."""
    import bitsandbytes.nn as bnb

    head = model.get_output_embeddings()
    for name, module in list(model.named_modules()):
        if type(module) is not torch.nn.Linear or module is head:
            continue
        shape, dtype = (module.out_features, module.in_features), module.weight.dtype
        if kind == "nf4":
            layer = bnb.Linear4bit(*shape[::-1], bias=False, compute_dtype=dtype, quant_type="nf4", device="meta")
            values = torch.randn(shape, dtype=dtype, device=device) * 0.02
            layer.weight = bnb.Params4bit(values, requires_grad=False, quant_type="nf4", module=layer).to(device)
        else:
            layer = bnb.Linear8bitLt(*shape[::-1], bias=False, has_fp16_weights=False, device="meta")
            values = torch.full(shape, 0.01, dtype=torch.float16)  # bitsandbytes quantises what comes from the host
            layer.weight = bnb.Int8Params(values, requires_grad=False, has_fp16_weights=False).to(device)
        model.set_submodule(name, layer)


def batches(workload: Workload) -> tuple[list[list[Encoded]], list[list[Encoded]]]:
    """Units of some lengths, as a batch that is sampled has them; and those of the largest micro-batch."""
    tokens, largest = micro_batch(workload.engine.physical_tokens, workload.max_tokens)
    mixed = [
        [_record(n, row)] for n in buckets(workload.max_tokens)[::5] for row in range(max(1, tokens // n * 2 // 3))
    ]
    return mixed, [[_record(largest, row)] for row in range(tokens // largest)]


def _record(length: int, seed: int) -> Encoded:
    ids = torch.randint(0, 30000, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Encoded(tuple(ids), tuple(range(length // 3, length - 1)), length)


def measured(case: Case, device: str, meter: Any) -> dict[str, Any]:
    """Peaks of two steps, after one that made AdamW's moments; tokens per second of the largest micro-batch."""
    model, workload = build(case, device)
    adapter, claimed = adapt(model, workload.lora, 1), plan()
    engine = Engine(adapter, claimed, workload.engine, 0)
    optimizer = ExactDPOptimizer(adapter, engine.sum, NoNoise(), claimed, 1e-4)  # its values take no memory
    mixed, largest = batches(workload)

    def step(units: list[list[Encoded]]) -> float:
        meter.synchronise()
        started = time.perf_counter()
        engine.accumulate(units)
        meter.synchronise()
        taken = time.perf_counter() - started
        optimizer.apply(optimizer.release())
        return taken

    step(largest[:1])
    meter.start()
    step(mixed)
    step(largest)
    seconds, peaks = step(largest), meter.peaks()
    tokens = sum(record.length for (record,) in largest)
    return {**peaks, "asked": workload, "tokens_per_second": tokens / seconds, "length": largest[0][0].length}


def row(case: Case, found: dict[str, Any], rate: float) -> dict[str, Any]:
    """What was said and measured in MiB, and what each constant would have to be for the two to agree."""
    workload = found.pop("asked")
    said = footprint(workload)
    packed = said.weights + said.adapter + said.gradients
    live = (said.activations + said.working) / HELD
    allocated, reserved, context = (found[name] for name in ("allocated", "reserved", "context"))
    driver = reserved + context
    work = found["tokens_per_second"] * operations(workload, found["length"])
    return {
        "case": {name: value for name, value in asdict(case).items() if value != getattr(Case(model=""), name)},
        "said": said.total // _MIB,
        "driver": driver // _MIB,
        "error": round(said.total / driver - 1, 4) if driver else None,
        "allocated": allocated // _MIB,
        "reserved": reserved // _MIB,
        "CONTEXT": context // _MIB,
        "WORKSPACE": round((allocated - packed - live) / _MIB),
        "HELD": round((reserved - packed - (allocated - packed - live)) / live, 3),
        "tokens_per_second": round(found["tokens_per_second"]),
        "share_of_rate": round(work / (rate * 1e9), 3),
    }


def rows(cases: list[Case], device: str, meter: Any) -> list[dict[str, Any]]:
    """One for each case; what fails is said and does not end the others."""
    rates = {dtype: gigaflops(torch.device(device), getattr(torch, dtype)) for dtype in {c.dtype for c in cases}}
    print(f"GFLOP/s of one product: {rates}", file=sys.stderr, flush=True)
    made = []
    for case in cases:
        started = time.perf_counter()
        try:
            made.append(row(case, measured(case, device, meter), rates[case.dtype]))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this case's figure
            made.append({"case": asdict(case), "failed": f"{type(error).__name__}: {error}"[:300]})
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
        print(f"{time.perf_counter() - started:.1f} s {json.dumps(made[-1])}", file=sys.stderr, flush=True)
    return made


def resident() -> int:
    """MiB of the host's memory that this process has now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmRSS:"))


def main() -> None:
    """Measure all cases on the first GPU; one JSON document on stdout."""
    meter = Meter()
    found = rows(CASES, "cuda", meter)
    card = torch.cuda.get_device_name()
    document = {"card": card, "torch": torch.__version__, "HOST_LIBRARIES": resident(), "rows": found}
    print(json.dumps(document))
