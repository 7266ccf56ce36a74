"""All of banking77 on a GPU: epsilon 1, 3 and 8 over 1, 3 and 10 epochs, with plain LoRA beside each number of epochs.

`bench/utility.py --device cuda` comes here. A small model leaves most of a GPU idle, so several processes share it;
each takes the next case that no other has taken, the most telling ones first. What the budget leaves no time for is
"not run". Settings are those of `train plan` for so many declared units; more epochs mean more steps of the same batch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from figures import Figure, age

EPOCHS = (1, 3, 10)
EPSILONS = (8.0, 3.0, 1.0)
PLAIN_RATES = {1: (5e-3, 2e-3), 3: (2e-3, 5e-3), 10: (2e-3, 1e-3)}
"""Of plain LoRA, for each number of epochs; the best one counts. With 1,200 records 5e-3 was the best of three."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is measured: where model and data are, and how much of the data; all of it where nothing is said."""

    model: str
    data: str
    device: str
    tokens: int
    units: int = 10_003
    held_out: int = 3_080
    epochs: tuple[int, ...] = EPOCHS


@dataclass(frozen=True, kw_only=True)
class Task:
    """One case: the base, an epsilon, or plain LoRA at a learning rate."""

    kind: str
    epochs: int = 0
    epsilon: float = 0.0
    lr: float = 0.0

    @property
    def name(self) -> str:
        if self.kind == "base":
            return "base"
        return (
            f"eps{self.epsilon:g}_epochs{self.epochs}" if self.epsilon else f"plain_epochs{self.epochs}_lr{self.lr:g}"
        )


def tasks(epochs: tuple[int, ...]) -> list[Task]:
    """All cases, the most telling ones first."""
    found = [Task(kind="base")]
    for count in epochs:
        first, *others = PLAIN_RATES[count]
        found += [Task(kind="plain", epochs=count, lr=first)]
        found += [Task(kind="private", epochs=count, epsilon=epsilon) for epsilon in EPSILONS]
        found += [Task(kind="plain", epochs=count, lr=rate) for rate in others]
    return found


def child(work: Path) -> None:
    """Takes cases until none is left; the losses and hits of each lie in `work/NAME.json` afterwards."""
    import banking

    sweep = Sweep(**json.loads((work / "sweep.json").read_text()))
    banking.DATA = Path(sweep.data)
    training, _ = banking.records("train", sweep.units, whole=True)
    test, labels = banking.records("test", sweep.held_out, whole=True)
    for task in tasks(tuple(sweep.epochs)):
        if not claimed(work / f"{task.name}.claim"):
            continue
        try:
            found = measured(sweep, task, training, test, labels, work / f"adapter-{os.getpid()}")
        except Exception as error:  # noqa: BLE001 - one case must not take the others with it
            found = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        partial = work / f"{task.name}.partial"
        partial.write_text(json.dumps(found))
        partial.rename(work / f"{task.name}.json")


def measured(sweep: Sweep, task: Task, training: Any, test: Any, labels: list[str], place: Path) -> dict[str, Any]:
    import banking

    began = time.monotonic()
    trained = banking.tuned(sweep, task, training)
    trained_s = time.monotonic() - began
    losses, hits = banking.judged(sweep, trained, test, labels, place)
    steps, seconds = trained.steps if trained else 0, time.monotonic() - began
    return {"losses": losses, "hits": hits, "steps": steps, "train_s": trained_s, "seconds": seconds}


def claimed(path: Path) -> bool:
    """Whether this process is the first to ask."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def figures(sweep: Sweep, work: Path, processes: int, budget: float) -> list[Figure]:
    """Every figure that the budget left time for; each case is printed as soon as it is known."""
    (work / "sweep.json").write_text(json.dumps(asdict(sweep)))
    command = [sys.executable, __file__, str(work)]
    from appliance.flows.launch import GPU_ENVIRONMENT

    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment |= GPU_ENVIRONMENT
    children = [subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) for _ in range(processes)]
    found: dict[str, Any] = {}
    try:
        while any(one.poll() is None for one in children) and age() < budget:
            time.sleep(0.5)
            collect(sweep, work, found)
    finally:
        for one in children:
            one.kill()
            one.wait()
    collect(sweep, work, found)
    return list(summary(sweep, found))


def collect(sweep: Sweep, work: Path, found: dict[str, Any]) -> None:
    """Reads what is new and prints it."""
    from banking import mean_interval

    for task in tasks(tuple(sweep.epochs)):
        path = work / f"{task.name}.json"
        if task.name in found or not path.exists():
            continue
        made = json.loads(path.read_text())
        found[task.name] = made
        if "error" in made:
            print(f"[{age():5.1f} s] {task.name}: {made['error']}", file=sys.stderr, flush=True)
            continue
        loss, accuracy = mean_interval(made["losses"])[0], mean_interval(made["hits"])[0]
        said = f"loss {loss:.4f}, accuracy {accuracy:.4f}, {made['steps']} steps in {made['train_s']:.0f} s"
        print(f"[{age():5.1f} s] {task.name}: {said}, {made['seconds']:.0f} s in all", file=sys.stderr, flush=True)


def summary(sweep: Sweep, found: dict[str, Any]) -> Iterator[Figure]:
    for epochs in sweep.epochs:
        yield from kept_figures(sweep, found, epochs)
    for task in tasks(tuple(sweep.epochs)):
        yield from case_figures(found, task)


def kept_figures(sweep: Sweep, found: dict[str, Any], epochs: int) -> Iterator[Figure]:
    """What every epsilon keeps of the gain of the best plain LoRA with as many epochs."""
    from banking import kept

    named = {rate: f"plain_epochs{epochs}_lr{rate:g}" for rate in PLAIN_RATES[epochs]}
    plain = {rate: sum(found[name]["losses"]) for rate, name in named.items() if not missing(found, name)}
    for epsilon in EPSILONS:
        name, case = f"gain_kept_eps{epsilon:g}_epochs{epochs}", f"eps{epsilon:g}_epochs{epochs}"
        lacking = missing(found, case) or missing(found, "base") or ("" if plain else "no plain LoRA")
        if lacking:
            yield Figure(name=name, value=None, unit="ratio", note=f"not run: {lacking}")
            continue
        rate = min(plain, key=plain.__getitem__)
        best, base, tuned = (found[one]["losses"] for one in (named[rate], "base", case))
        share, low, high = kept(base, best, tuned)
        note = f"{sweep.units} units, {found[case]['steps']} steps, plain lr {rate:g} of {len(plain)} rates; "
        note += f"spread: 95 % over {len(base)} paired test records"
        yield Figure(name=name, value=share, unit="ratio", better="higher", spread=(low, high), peer="plain LoRA",
                     note=note)  # fmt: skip


def case_figures(found: dict[str, Any], task: Task) -> Iterator[Figure]:
    from banking import mean_interval

    for what, key, unit, better in (("loss", "losses", "nat", "lower"), ("accuracy", "hits", "", "higher")):
        if lacking := missing(found, task.name):
            yield Figure(name=f"{what}_{task.name}", value=None, unit=unit, note=f"not run: {lacking}")
            continue
        made = found[task.name]
        mean, low, high = mean_interval(made[key])
        note = f"{len(made[key])} test records; {made['steps']} steps in {made['train_s']:.0f} s"
        yield Figure(name=f"{what}_{task.name}", value=mean, unit=unit, better=better, spread=(low, high), note=note)


def missing(found: dict[str, Any], case: str) -> str:
    """Why there is nothing of a case, or an empty string."""
    return str(found[case].get("error", "")) if case in found else "time"


if __name__ == "__main__":
    child(Path(sys.argv[1]))
