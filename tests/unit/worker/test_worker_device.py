"""What a worker computes can be computed on a device: nothing mixes its tensors with the CPU's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.conftest import MEDIA

ROOT = MEDIA.parent
TRIED = """
import json, sys, torch
from tests.pretend import DEVICE, Pretending, waits
found = []
for statement in sys.argv[1:]:
    with Pretending():
        ours, theirs = torch.ones(4, device=DEVICE), torch.ones(4)
        waits.clear()
        try:
            exec(statement)
            found.append(len(waits))
        except Exception as error:
            found.append(type(error).__name__)
print(json.dumps(found))
"""
"""What becomes of each statement: how often the host would wait, or which error it is refused with."""
REFUSED = ("ours + theirs", "torch.dot(theirs, ours)", "ours.numpy()", "ours.add_(theirs)")
ALLOWED = ("ours[:2] = theirs[:2]", "ours.copy_(theirs)", "ours[torch.tensor([0])]", "(ours + 1).cpu().numpy()")
WAITED_FOR = (
    "ours.sum().item()",
    "ours.cpu()",
    "ours.tolist()",
    "ours[ours > 0]",
    "theirs.to(DEVICE)",
    "bool(ours.any())",
)
NOT_WAITED_FOR = ("theirs.to(DEVICE, non_blocking=True)",)


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)


def test_every_job_runs_on_a_device(tiny_model_dir: Path, tmp_path: Path) -> None:
    done = run("-m", "tests.unit.worker.on_a_device", str(tiny_model_dir), str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split("\n")[-3:] == ["evaluation", "watermark", ""]


def tried(*statements: str) -> dict[str, Any]:
    done = run("-c", TRIED, *statements)
    assert done.returncode == 0, done.stderr
    return dict(zip(statements, json.loads(done.stdout), strict=True))


def test_what_a_gpu_refuses_is_refused_and_what_it_allows_is_allowed() -> None:
    """The device that the test above stands on can fail it."""
    found = tried(*REFUSED, *ALLOWED)
    for statement in REFUSED:
        assert str(found[statement]).endswith("Error"), statement
    for statement in ALLOWED:
        assert isinstance(found[statement], int), (statement, found[statement])


def test_the_host_waits_for_nothing_in_a_micro_batch(tiny_model_dir: Path) -> None:
    done = run("-m", "tests.unit.train.waiting", str(tiny_model_dir))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["done"]


def test_what_a_host_waits_for_is_counted_and_a_copy_that_does_not_block_is_no_wait() -> None:
    """The counter that the test above stands on can fail it."""
    found = tried(*WAITED_FOR, *NOT_WAITED_FOR)
    assert found == dict.fromkeys(WAITED_FOR, 1) | dict.fromkeys(NOT_WAITED_FOR, 0)
