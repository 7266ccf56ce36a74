"""The examples in docstrings are run: what they show is what happens."""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted((ROOT / "appliance").rglob("*.py"))
    if ">>> " in path.read_text()
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module(name: str, tmp_path: Path) -> None:
    """`directory` stands for an empty directory."""
    done = doctest.testmod(import_module(name), extraglobs={"directory": tmp_path}, optionflags=doctest.ELLIPSIS)
    assert done.attempted > 0
    assert done.failed == 0


def test_there_are_examples_where_they_say_more_than_prose() -> None:
    shown = {
        "appliance.ledger.canonical",
        "appliance.ledger.merkle",
        "appliance.privacy.journal",
        "appliance.privacy.plan",
    }
    assert shown <= set(MODULES)
