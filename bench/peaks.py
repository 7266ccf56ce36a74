"""Peak resident memory, each measurement in a process of its own: `python bench/peaks.py CASE` prints one JSON line.

What counts is the kernel's high-water mark of the process (VmHWM) during two steps, above what is resident in the plain
side once the model and its adapter are loaded and one step on one short record has read every weight; the mark is set
back before the steps and what is free has been given back.
"""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))


@dataclass(frozen=True, kw_only=True)
class Case:
    """One measurement: `side` is ours, plain or nf4_7b."""

    side: str
    directory: str = ""
    dtype: str = "float32"
    targets: str = "all-linear"
    rows: int = 1
    length: int = 1024
    freeze_a: bool = False
    checkpointing: bool = False


@cache
def peak(case: Case) -> dict[str, float]:
    """{"model": GiB resident before, "peak": GiB at most during the steps} of a fresh process."""
    command = [sys.executable, __file__, json.dumps(asdict(case))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def resident(field: str) -> float:
    """VmRSS or VmHWM of this process in GiB."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 2**20


def measured(case: Case) -> dict[str, float]:
    step = nf4_7b() if case.side == "nf4_7b" else small(case)
    ctypes.CDLL(None).malloc_trim(0)  # what loading left free would otherwise be counted to the model
    Path("/proc/self/clear_refs").write_text("5")
    model = resident("VmRSS")
    step()
    if case.side != "nf4_7b":
        step()
    return {"model": model, "peak": resident("VmHWM")}


def small(case: Case) -> Any:
    from batches import batch_of
    from sides import Ours, Plain

    directory, batch = Path(case.directory), batch_of(case.rows, case.length, Path(case.directory))
    options = {"gradient_checkpointing": case.checkpointing, "freeze_a": case.freeze_a, "rows": case.rows}
    tokens = case.rows * case.length
    if case.side == "ours":
        side: Any = Ours(directory, case.dtype, case.targets, "cpu", tokens, **options)
    else:
        side = Plain(directory, case.dtype, case.targets, "cpu")
    side.step(batch_of(1, 8, directory))  # weights that are mapped are resident only once they have been read
    return lambda: side.step(batch)


def nf4_7b() -> Any:
    """One DP step of a Llama of 7B shape with random NF4 weights, which never existed in another format."""
    from fractions import Fraction

    from batches import random_record

    from appliance.jobs.job import EngineOptions
    from appliance.jobs.lora import LoraSpec
    from appliance.privacy.sampler import noise_variance
    from appliance.train.adapting import adapt
    from appliance.train.engine import Engine
    from appliance.train.noise import DiscreteGaussian
    from appliance.train.optimizer import ExactDPOptimizer
    from tests.unit.train import rig

    adapter = adapt(random_nf4(), LoraSpec(r=8, targets="all-linear", quantize_base="nf4"), 1)
    options = EngineOptions(physical_tokens=1024, dtype="bfloat16", gradient_checkpointing=True)
    plan = rig.plan()
    engine = Engine(adapter, plan, options, 0)
    variance: Fraction = noise_variance(plan.noise_multiplier, plan.max_grad_norm, adapter.parameters)
    optimizer = ExactDPOptimizer(adapter, engine.sum, DiscreteGaussian(variance), plan, 1e-4)

    def step() -> None:
        engine.accumulate([[random_record(1024, 32000, 1)]])
        optimizer.apply(optimizer.release())

    return step


def random_nf4() -> Any:
    """Hidden 4096, 32 layers, 32 heads, intermediate 11008, vocabulary 32000: Llama 2 7B's shape."""
    import torch
    from accelerate import init_empty_weights
    from bitsandbytes.functional import QuantState, quantize_4bit
    from bitsandbytes.nn import Linear4bit, Params4bit
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
                         num_attention_heads=32, num_key_value_heads=32, max_position_embeddings=2048)  # fmt: skip
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    head = model.get_output_embeddings()
    _, like = quantize_4bit(torch.randn(64, 64).bfloat16(), quant_type="nf4")
    for name, module in list(model.named_modules()):
        if type(module) is torch.nn.Linear and module is not head:
            layer = Linear4bit(module.in_features, module.out_features, bias=False, compute_dtype=torch.bfloat16,
                               quant_type="nf4", device="meta")  # fmt: skip
            values = module.in_features * module.out_features
            state = QuantState(absmax=torch.full((values // 64,), 0.05), shape=module.weight.shape, code=like.code,
                               blocksize=64, quant_type="nf4", dtype=torch.bfloat16)  # fmt: skip
            codes = torch.randint(0, 256, (values // 2, 1), dtype=torch.uint8)
            layer.weight = Params4bit(codes, requires_grad=False, quant_state=state, bnb_quantized=True, module=layer)
            model.set_submodule(name, layer)
    for name, parameter in list(model.named_parameters()):
        if parameter.is_meta:
            parent, _, leaf = name.rpartition(".")
            value = torch.ones(parameter.shape) if parameter.dim() == 1 else torch.randn(parameter.shape) * 0.02
            setattr(model.get_submodule(parent), leaf, torch.nn.Parameter(value.bfloat16(), requires_grad=False))
    return model


if __name__ == "__main__":
    print(json.dumps(measured(Case(**json.loads(sys.argv[1])))))
