"""What a worker computes can be computed on a device: nothing mixes its tensors with the CPU's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import MEDIA

ROOT = MEDIA.parent
MIXES = """
import torch
from tests.pretend import DEVICE, Pretending
with Pretending():
    ours, theirs = torch.ones(4, device=DEVICE), torch.ones(4)
    {}
"""


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)


def test_every_job_runs_on_a_device(tiny_model_dir: Path, tmp_path: Path) -> None:
    done = run("-m", "tests.unit.worker.on_a_device", str(tiny_model_dir), str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split("\n")[-3:] == ["evaluation", "watermark", ""]


@pytest.mark.parametrize("mixing", ["ours + theirs", "torch.dot(theirs, ours)", "ours.numpy()", "ours.add_(theirs)"])
def test_what_a_gpu_refuses_is_refused(mixing: str) -> None:
    """The device that the test above stands on can fail it."""
    done = run("-c", MIXES.format(mixing))
    assert done.returncode == 1
    assert "Error" in done.stderr


def test_what_a_gpu_allows_is_allowed() -> None:
    allowed = "ours[:2] = theirs[:2]; ours.copy_(theirs); ours[torch.tensor([0])]; (ours + 1).cpu().numpy()"
    assert run("-c", MIXES.format(allowed)).returncode == 0


def test_the_host_waits_for_nothing_in_a_micro_batch(tiny_model_dir: Path) -> None:
    done = run("-m", "tests.unit.train.waiting", str(tiny_model_dir))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["done"]


@pytest.mark.parametrize(
    "waiting",
    ["ours.sum().item()", "ours.cpu()", "ours.tolist()", "ours[ours > 0]", "theirs.to(DEVICE)", "bool(ours.any())"],
)
def test_what_a_host_waits_for_is_counted(waiting: str) -> None:
    """The counter that the test above stands on can fail it."""
    done = run(
        "-c",
        MIXES.replace("import DEVICE", "import waits, DEVICE").format(f"waits.clear(); {waiting}; print(len(waits))"),
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 1


def test_a_copy_that_does_not_block_is_no_wait() -> None:
    script = MIXES.replace("import DEVICE", "import waits, DEVICE")
    done = run("-c", script.format("waits.clear(); theirs.to(DEVICE, non_blocking=True); print(len(waits))"))
    assert done.stdout.split() == ["0"], done.stderr
