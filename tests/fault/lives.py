"""Runs that are killed again and again: `python -m tests.fault.lives MODEL DIRECTORY KILLS SEED`.

Journal and sealed snapshots are the real ones, on disk; the sample is fixed and there is no noise, so that a run that
was killed can be compared bit for bit with one that was not. Each life is a fork of this process, which has the
model, and counts the samples it draws in memory that outlives it. Prints what was found as JSON: kills, runs, steps
that were lost, and the different ends that the runs had.
"""

from __future__ import annotations

import copy
import hashlib
import json
import mmap
import os
import random
import signal
import struct
import sys
import time
from pathlib import Path
from typing import Any

import torch

from appliance.privacy import journal
from appliance.worker.train import _SealedSnapshots
from tests.unit.train import rig
from tests.unit.train.rig import FixedSampler, MemoryJournal, MemorySnapshots, NoNoise, job, load, people, plan

STEPS, SPARE, UNITS = 37, 60, 30  # 37: the end lies between two snapshots
PLAN = plan(steps=STEPS, spare_steps=SPARE)


class Counting(FixedSampler):
    """Counts its draws where the parent sees them."""

    def __init__(self, start: int, counter: mmap.mmap) -> None:
        super().__init__(UNITS, start=start)
        self.counter = counter

    def draw(self) -> Any:
        self.counter[:8] = struct.pack("q", drawn(self.counter) + 1)
        return super().draw()


def drawn(counter: mmap.mmap) -> int:
    return int(struct.unpack("q", counter[:8])[0])


def live(directory: Path, model: Any, tokenizer: Any, counter: mmap.mmap) -> None:
    """One life, in the child: trains until it is killed or done; leaves the digest of the weights when done."""
    with journal.Journal.open(directory / "journal.jsonl", "run-1", "0" * 64) as kept:
        trainer = rig.trainer(
            job(PLAN), model, tokenizer, people(UNITS), kept, _SealedSnapshots(directory / "snapshots", bytes(32), "r"),
            lambda public: None, sampler=Counting(kept.state.steps, counter), noise=NoNoise(),
        )  # fmt: skip
        out = trainer.run()
    whole = b"".join(out.state[name].numpy().tobytes() for name in sorted(out.state))
    (directory / "done").write_text(f"{out.steps} {hashlib.sha256(whole).hexdigest()}")


def import_all(model: Any, tokenizer: Any) -> None:
    """Import what a life imports when it makes its trainer, so that its forks need not."""
    kept = (people(UNITS), MemoryJournal(), MemorySnapshots(), lambda public: None)
    rig.trainer(job(PLAN), copy.deepcopy(model), tokenizer, *kept)


def begin(directory: Path, model: Any, tokenizer: Any, counter: mmap.mmap) -> int:
    child = os.fork()
    if child == 0:
        try:
            live(directory, copy.deepcopy(model), tokenizer, counter)
            os._exit(0)
        except BaseException as error:  # noqa: BLE001 - the parent says what it was
            (directory / "error").write_text(f"{type(error).__name__}: {error}")
            os._exit(1)
    return child


def kill_at_some_point(child: int, directory: Path, chooser: random.Random) -> int:
    """Kill some bytes of journal further on, or at some moment of the start; the wait status of the child."""
    path = directory / "journal.jsonl"
    size = path.stat().st_size if path.exists() else 0
    target, pause = size + chooser.randrange(2500), chooser.uniform(0, 0.04)
    while (path.stat().st_size if path.exists() else 0) < target:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status
        time.sleep(0.0005)
    time.sleep(pause)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def check(directory: Path, made: int) -> None:
    """Never fewer attempts than were made, never more than the reservation."""
    state = journal.read(directory / "journal.jsonl", "run-1")
    charged = journal.charge(state, PLAN.attempts, None)
    assert state is None or state.intact
    assert made <= charged <= PLAN.attempts, (made, charged)


def main() -> None:
    from transformers import AutoTokenizer

    model_dir, base, kills, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    model, tokenizer = load(model_dir), AutoTokenizer.from_pretrained(model_dir)
    import_all(model, tokenizer)
    chooser, killed, runs, lost = random.Random(seed), 0, [], 0
    while killed < kills or not lost:
        directory, counter = base / str(len(runs)), mmap.mmap(-1, 8)
        directory.mkdir()
        while not (directory / "done").exists():
            child = begin(directory, model, tokenizer, counter)
            if runs:  # the first run is never killed
                status = kill_at_some_point(child, directory, chooser)
                killed += os.WIFSIGNALED(status)
            else:
                status = os.waitpid(child, 0)[1]
            assert not (directory / "error").exists(), (directory / "error").read_text()
            check(directory, drawn(counter))
        runs.append((directory / "done").read_text())
        lost += drawn(counter) - STEPS
    sys.stdout.write(json.dumps({"killed": killed, "runs": len(runs), "lost": lost, "ends": sorted(set(runs))}))


if __name__ == "__main__":
    main()
