"""What a worker's threads cost where the processors do other work too: CPU time of a step beside a busy neighbour.

OpenMP threads that wait for each other may spin. On processors that others use, the thread that is waited for does not
run, and the spinning is lost: six busy processes made a run cost five times the CPU time. Workers spin briefly
(`flows.launch.SPINS`); the note says what it costs as the libraries have it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from figures import Figure

from appliance.flows.launch import SPINS

_BUSY = 3  # processes for each processor


def figure(directory: Path, bar: float | None, repeats: int) -> Figure:
    """CPU time of steps beside busy processes over that of the same steps alone, each pair one after the other."""
    ratios = {spins: _ratios(directory, spins, repeats) for spins in (SPINS, None)}
    ours, theirs = sorted(found for found, _ in ratios[SPINS]), sorted(found for found, _ in ratios[None])
    alone = median(seconds for _, seconds in ratios[SPINS]) / median(seconds for _, seconds in ratios[None])
    note = f"as the libraries have it {median(theirs):.3g}; alone, time of a step over theirs {alone:.3g}"
    return Figure(
        name="cpu_time_beside_a_neighbour", value=median(ours), unit="ratio", bar=bar, repeats=repeats,
        spread=(ours[0], ours[-1]), note=note,
    )  # fmt: skip


def _ratios(directory: Path, spins: str | None, repeats: int) -> list[tuple[float, float]]:
    """(CPU time beside the neighbours over CPU time alone, seconds of a step alone) of each repeat."""
    found = []
    for _ in range(repeats):
        alone, seconds = _worked(directory, spins)
        with _neighbours():
            found.append((_worked(directory, spins)[0] / alone, seconds))
    return found


@contextmanager
def _neighbours() -> Iterator[None]:
    busy = [
        subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"])
        for _ in range(_BUSY * len(os.sched_getaffinity(0)))
    ]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def _worked(directory: Path, spins: str | None) -> tuple[float, float]:
    """CPU seconds and seconds of a step in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    environment |= {"HF_HUB_OFFLINE": "1"} | ({} if spins is None else {"GOMP_SPINCOUNT": spins})
    done = subprocess.run(
        [sys.executable, __file__, str(directory)], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    cpu, seconds = map(float, done.stdout.split()[-2:])
    return cpu, seconds


def main() -> None:
    """Takes three steps of (8, 128), a thread for each processor; prints CPU seconds and seconds of one."""
    import torch
    from batches import batch_of
    from sides import Ours

    directory, steps = Path(sys.argv[1]), 3
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    batch, us = batch_of(8, 128, directory), Ours(directory, "float32", "all-linear", "cpu", 1024)
    us.step(batch)
    cpu, began = time.process_time(), time.perf_counter()
    for _ in range(steps):
        us.step(batch)
    print((time.process_time() - cpu) / steps, (time.perf_counter() - began) / steps)


if __name__ == "__main__":
    main()
