"""Ranks of runs with a fixed sample and no noise: `python -m tests.unit.train.rank SPECS` (JSON: name to spec).

A spec has size, units, steps, patience_s, model and directory, and optionally `phases`, `fault` (a trap to put back),
`master` (host and port where ranks on several hosts meet), `addresses` and `hosts` (of each rank: its address, its
network namespace). The ranks of a spec are forks of this process, which has imported all that they need. Prints what
each rank saw, by name; size 0 is a run of one process.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import FileStore

from appliance.errors import ApplianceError
from appliance.isolation import kernel
from appliance.jobs.plan import Phase
from appliance.jobs.ticket import Rendezvous
from appliance.train.engines import Alone, Ranks, Several
from appliance.train.loop import Trainer
from appliance.worker import meeting
from tests.unit.train import rig
from tests.unit.train.rig import FixedSampler, MemoryJournal, MemorySnapshots, NoNoise, job, load, people, plan


def sha(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()


def trainer(spec: dict[str, Any], ranks: Ranks) -> Trainer:
    from transformers import AutoTokenizer

    units = spec["units"]
    phases = tuple(Phase(**phase) for phase in spec.get("phases", ()))
    made: Trainer = rig.trainer(
        job(plan(steps=spec["steps"], spare_steps=4, phases=phases)),
        load(spec["model"]),
        AutoTokenizer.from_pretrained(spec["model"]),
        people(units),
        MemoryJournal() if ranks.main else None,
        MemorySnapshots() if ranks.main else None,
        lambda public: None,
        ranks=ranks,
        sampler=FixedSampler(units, seed=spec.get("seed", 0)),
        noise=NoNoise(),
    )
    return made


def observed(made: Trainer, ranks: Ranks) -> dict[str, Any]:
    """Run it and note what this rank was dealt, the sums that were taken, its weights after every step, its history."""
    seen: dict[str, Any] = {"dealt": [], "sums": [], "weights": []}
    deal, take, apply = ranks.deal, made._engine.sum.take, made._optimizer.apply

    def noted_deal(draw: Any, units: int) -> Any:
        dealt = deal(draw, units)
        seen["dealt"].append(dealt.tolist())
        return dealt

    def noted_take() -> Tensor:
        taken = take()
        seen["sums"].append(sha(taken))
        return taken

    def noted_apply(gradient: Tensor) -> None:
        apply(gradient)
        seen["weights"].append(sha(made._weights()))

    ranks.deal, made._engine.sum.take, made._optimizer.apply = noted_deal, noted_take, noted_apply  # type: ignore
    out = made.run()
    return seen | {"history": made._accountant.history, "steps": out.steps, "attempts": out.attempts}


def alone(spec: dict[str, Any]) -> dict[str, Any]:
    ranks = Alone()
    return observed(trainer(spec, ranks), ranks)


class Counted:
    """A process group that counts its collectives."""

    def __init__(self, group: Any) -> None:
        self.group, self.count = group, 0

    def __getattr__(self, name: str) -> Any:
        self.count += 1
        return getattr(self.group, name)


def meet(spec: dict[str, Any], rank: int) -> Several:
    if "master" in spec:
        host, port = spec["master"]
        rendezvous = Rendezvous(
            host=host, port=port, nonce="aa" * 16, first=rank, size=spec["size"], timeout_s=float(spec["patience_s"]),
            here=spec["addresses"][rank],
        )  # fmt: skip
        return meeting.meet(rendezvous, rank, bytes(32))
    store = FileStore(str(Path(spec["directory"], "meeting")), spec["size"])
    return Several(store, rank, spec["size"], patience_s=spec["patience_s"])


def put_back(fault: str, made: Trainer, ranks: Several) -> None:
    """Break one rank as others broke theirs."""
    if fault == "skip empty batches":  # a rank without a share leaves the step out, with its collectives
        attempt, deal = made._attempt, ranks.deal

        def skipping() -> None:
            kept = made._engine.accumulate

            def leave(units: Any) -> None:
                if not units:
                    raise _Skip
                kept(units)

            made._engine.accumulate = leave  # type: ignore[method-assign]
            try:
                attempt()
            except _Skip:
                made._step += 1

        made._attempt, ranks.deal = skipping, deal  # type: ignore[method-assign]
    elif fault == "stray weights" and not ranks.main:
        next(iter(made._adapter.trainable)).data.view(-1)[0] += 1e-6
    elif fault == "other gradients" and not ranks.main:  # as a processor of another kind would have them
        next(made._adapter.model.parameters()).data.mul_(1 + 2**-20)
    elif fault == "second noise" and not ranks.main:
        made._optimizer.release()
    elif fault == "die" and not ranks.main:
        os._exit(3)


class _Skip(Exception):
    pass


def one(spec: dict[str, Any], rank: int) -> dict[str, Any]:
    """What one rank sees, or how it ends."""
    if "hosts" in spec:
        with open(f"/run/netns/{spec['hosts'][rank]}") as namespace:
            kernel.syscall({"x86_64": 308, "aarch64": 268}[kernel.machine()], namespace.fileno(), 0)
    try:
        ranks = meet(spec, rank)
        ranks._group = counted = Counted(ranks._group)
        made = trainer(spec, ranks)
        put_back(spec.get("fault", ""), made, ranks)
        return observed(made, ranks) | {"collectives": counted.count}
    except ApplianceError as refusal:
        return {"error": type(refusal).__name__, "message": refusal.message}


def fork(spec: dict[str, Any], rank: int) -> tuple[int, Path]:
    left, child = Path(spec["directory"], f"{rank}.json"), os.fork()
    if child == 0:
        try:
            left.write_text(json.dumps(one(spec, rank) if spec["size"] else alone(spec)))
        finally:
            os._exit(0)
    return child, left


def together(spec: dict[str, Any]) -> list[dict[str, Any]]:
    Path(spec["directory"]).mkdir()
    started = [fork(spec, rank) for rank in range(max(1, spec["size"]))]
    for child, _ in started:
        os.waitpid(child, 0)
    return [json.loads(left.read_text()) if left.exists() else {} for _, left in started]


def import_all(spec: dict[str, Any]) -> None:
    """Import what a rank imports when it makes its trainer, so that its forks need not."""
    trainer(spec, Alone())


if __name__ == "__main__":
    torch.set_num_threads(1)
    specs = json.loads(sys.argv[1])
    import_all(next(iter(specs.values())))
    sys.stdout.write(json.dumps({name: together(spec) for name, spec in specs.items()}))
