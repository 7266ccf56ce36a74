"""Everything that a worker computes, with its tensors on the device of `tests.pretend`: `python -m ... MODEL WORK`.

Prints one line for each part that ran. Whatever mixes the two sides, as on a GPU, ends it with a traceback.
"""

from __future__ import annotations

import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import torch

from appliance.audit.selftest import examine
from appliance.evaluate.losses import Meter
from appliance.evaluate.variants import Variants
from appliance.jobs.job import EngineOptions
from appliance.jobs.lora import LoraSpec
from appliance.jobs.plan import UnitOfPrivacy
from appliance.jobs.train import TrainSpec
from appliance.models.loading import load
from appliance.train.mechanism import assemble
from appliance.train.proofs import prove
from appliance.train.tap import ReleaseTap
from appliance.train.trained import save_adapter
from appliance.watermark.activations import top_directions
from appliance.watermark.adapters import read_adapter
from appliance.watermark.release import prepare
from tests.pretend import DEVICE, Pretending
from tests.unit.train import rig


def opened(directory: Path, dtype: str) -> tuple[Any, Any]:
    model, tokenizer = load(directory, getattr(torch, dtype))
    return model.to(DEVICE), tokenizer  # type: ignore[arg-type]


def selftest(directory: Path, dtype: str, lora: LoraSpec) -> None:
    """The proofs of the start of a run, and the self-test before it."""
    options = EngineOptions(dtype=dtype, physical_tokens=512)  # type: ignore[arg-type]
    model, tokenizer = opened(directory, dtype)
    made = assemble(rig.plan(), lora, TrainSpec(lr=1e-2, max_tokens=96), options, model, tokenizer)
    assert made.engine.buffer.data.device == made.engine.sum.total.device == DEVICE
    prove(made.engine, [16, 32])
    assert [check for check in examine(ReleaseTap(made, rig.plan()), rig.plan()) if not check.passed] == []


def training(directory: Path, dtype: str, checkpointing: bool, grouped: bool, adapter: Path) -> None:
    """Eleven steps, with a snapshot in between, and going on from it in a new process' stead."""
    options = EngineOptions(dtype=dtype, physical_tokens=512, gradient_checkpointing=checkpointing)  # type: ignore[arg-type]
    unit = UnitOfPrivacy(kind="subject", key="k", max_records=2) if grouped else UnitOfPrivacy()
    job = rig.job(rig.plan(steps=11, unit=unit), spec=TrainSpec(lr=1e-2, max_tokens=32), options=options)
    journal, snapshots = rig.MemoryJournal(), rig.MemorySnapshots()
    kept = (rig.people(40, 20), journal, snapshots, lambda public: None)
    trained = rig.trainer(job, *opened(directory, dtype), *kept).run()
    again = rig.trainer(job, *opened(directory, dtype), *kept).run()
    assert trained.steps == again.steps == 11
    assert all(torch.equal(trained.state[name], again.state[name]) for name in trained.state)
    adapter.mkdir()
    save_adapter(trained, adapter)


def evaluation(directory: Path, adapter: Path) -> None:
    variants = Variants(opened(directory, "bfloat16")[0])
    variants.attach("adapter", adapter)
    meter = Meter(variants, 0, 512)
    assert meter.fixed
    losses = meter.measure([rig.encoded(n, n) for n in (20, 30, 20, 7, 200)]).numpy()
    assert (losses > 0).all()


def watermark(directory: Path, adapter: Path) -> None:
    model, tokenizer = opened(directory, "bfloat16")
    factors = read_adapter(adapter)
    directions = top_directions(model, factors.names, tokenizer("to be marked " * 100)["input_ids"])
    assert prepare(factors, lambda name: model.get_submodule(name).weight.cpu(), directions).rho > 0


def pretend_in_threads() -> None:
    """A mode of torch holds for one thread; the self-test starts more of them, one for each rank."""
    run = threading.Thread.run

    def pretending(thread: threading.Thread) -> None:
        with Pretending():
            run(thread)

    threading.Thread.run = pretending  # type: ignore[method-assign]


def main() -> None:
    warnings.simplefilter("ignore")
    pretend_in_threads()
    directory, work = Path(sys.argv[1]), Path(sys.argv[2])
    adapter = work / "adapter-float32"
    with Pretending():
        for dtype, coarse in (("float32", False), ("bfloat16", True)):
            selftest(directory, dtype, LoraSpec(r=4, freeze_a=coarse))
            training(directory, dtype, checkpointing=coarse, grouped=not coarse, adapter=work / f"adapter-{dtype}")
            print(f"self-test and training in {dtype}")
        evaluation(directory, adapter)
        print("evaluation")
        watermark(directory, adapter)
        print("watermark")


if __name__ == "__main__":
    main()
