"""What the engine self-test sees and costs: faults that it catches, false alarms, seconds, the component figure."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import media
import pytest
from figures import Figure, Report, arguments

from appliance.audit.selftest import examine
from appliance.jobs.job import EngineOptions
from appliance.jobs.lora import LoraSpec
from appliance.jobs.selftest import Check
from appliance.jobs.train import TrainSpec
from appliance.train.mechanism import assemble
from appliance.train.tap import ReleaseTap
from tests import conftest  # puts the libraries offline before any of them is imported
from tests.unit.audit.mutants.every import MUTANTS, Mutant
from tests.unit.audit.rig_audit import claimed, tap
from tests.unit.audit.test_audit_mutants import judge


def caught(mutant: Mutant, directory: Path) -> bool:
    made = tap(directory, mutant.plan)
    with pytest.MonkeyPatch.context() as patch:
        mutant.put_in(patch, made)
        return mutant.seen_by in [check.name for check in judge(mutant, made) if not check.passed]


def share(checks: list[Check]) -> float:
    return next((float(check.value) for check in checks if check.name == "component.epsilon"), 0.0)


def mutation(directory: Path) -> list[Figure]:
    began = time.perf_counter()
    faults = [mutant for mutant in MUTANTS if not mutant.unseen]
    seen = [caught(mutant, directory) for mutant in faults]
    took = time.perf_counter() - began
    missed = ", ".join(m.name for m, found in zip(faults, seen, strict=True) if not found)
    return [
        Figure(name="mutants_total", value=len(faults), unit="", bar=60, better="higher"),
        Figure(
            name="mutants_caught_fraction", value=sum(seen) / len(seen), unit="", bar=1.0, better="higher", note=missed
        ),
        Figure(name="mutation_suite_s", value=took, unit="s", bar=60.0),
    ]


def clean(directory: Path, runs: int) -> list[Figure]:
    plan = claimed()
    made = tap(directory, plan)
    found = [examine(made, plan) for _ in range(runs)]
    alarms = sum(not all(check.passed for check in checks) for checks in found)
    return [Figure(name="selftest_false_alarms", value=alarms, unit="", bar=0, repeats=runs)]


def cost(directory: Path, dtype: str, repeats: int, note: str) -> list[Figure]:
    import torch

    from appliance.models.loading import load

    plan, options = claimed(clipping="normalised"), EngineOptions(physical_tokens=1024)
    model, tokenizer = load(directory, getattr(torch, dtype))
    made = ReleaseTap(assemble(plan, LoraSpec(), TrainSpec(lr=1e-3, max_tokens=256), options, model, tokenizer), plan)
    seconds, shares = [], []
    for _ in range(repeats):
        began = time.perf_counter()
        shares.append(share(examine(made, plan)))
        seconds.append(time.perf_counter() - began)
    note = f"{note}, {made.parameters} parameters, {dtype}"
    spread = (min(seconds), max(seconds))
    return [
        Figure(name="selftest_s", value=median(seconds), unit="s", bar=5.0, repeats=repeats, spread=spread, note=note),
        Figure(name="component_fraction", value=min(shares), unit="", bar=0.97, better="higher", repeats=repeats),
    ]


def main() -> None:
    options = arguments(__doc__ or "")
    report = Report(bench="audit", quick=options.quick)
    with tempfile.TemporaryDirectory() as name:
        tiny, real = Path(name) / "tiny", Path(name) / "real"
        tiny.mkdir()
        conftest._build_llama(tiny)
        report.figures += mutation(tiny)
        report.figures += clean(tiny, 20 if options.quick else 1000)
        measured, note = tiny, "a tiny model: .media has no SmolLM2"
        if media.is_there():
            measured, note = media.model(real), "SmolLM2-135M"
        report.figures += cost(measured, "float32", 3 if options.quick else 9, note)
    report.print(as_json=options.json)


if __name__ == "__main__":
    main()
