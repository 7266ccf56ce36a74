"""CONTRIBUTING lists every module that computes otherwise on a GPU, and what reaches it without one."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BRANCHES = re.compile(r"""torch\.cuda\.|[!=]= "(cuda|cpu)"|"cuda" if|on_gpu""")
ROW = re.compile(r"^\| (`[\w/.]+`(?:, `[\w/.]+`)*) \| .+ \| `([\w/.]+)` \|$", re.MULTILINE)


def listed() -> dict[str, str]:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    section = text.split("## What only a GPU runs\n")[1].split("\n## ")[0]
    return {name: test for names, test in ROW.findall(section) for name in re.findall(r"`([^`]+)`", names)}


def branching() -> set[str]:
    modules = (ROOT / "appliance").rglob("*.py")
    return {str(path.relative_to(ROOT / "appliance")) for path in modules if BRANCHES.search(path.read_text())}


def test_every_module_that_differs_on_a_gpu_is_listed_with_what_reaches_it() -> None:
    found = listed()
    assert set(found) == branching()
    for module, test in found.items():
        assert (ROOT / test).is_file(), f"{module}: no {test}"


def test_a_branch_would_be_found() -> None:
    assert BRANCHES.search('if options.device == "cuda":')
    assert BRANCHES.search("torch.cuda.synchronize()")
    assert not BRANCHES.search('"""the device, "cuda" or another"""')
