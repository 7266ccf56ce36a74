"""The shape that the architecture promises: short bodies, short modules, words imported when they are used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from appliance.cli.lazy import TABLE, load

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[3] / "appliance"
MODULES = sorted(ROOT.rglob("*.py"))
LONG_MODULES = {"export/verify.py"}
"""The verifier is one file on purpose: it is copied into bundles."""


def name(module: Path) -> str:
    return str(module.relative_to(ROOT))


def functions(module: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def lines(body: list[ast.stmt]) -> int:
    """Lines of a body without its docstring."""
    rest = body[1:] if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant) else body
    return rest[-1].end_lineno - rest[0].lineno + 1 if rest else 0


def is_command(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """True for what typer runs: the verbs of a noun, and the nouns that are verbs themselves."""
    return any(isinstance(one, ast.Call) and "command" in ast.unparse(one.func) for one in node.decorator_list) or (
        node.name in TABLE
    )


@pytest.mark.parametrize("module", MODULES, ids=name)
def test_no_module_is_longer_than_300_lines(module: Path) -> None:
    assert len(module.read_text().splitlines()) <= 300 or name(module) in LONG_MODULES


def test_no_function_is_longer_than_40_lines() -> None:
    long = [f"{name(module)}:{node.name}" for module in MODULES for node in functions(module) if lines(node.body) > 40]
    assert [one for one in long if one.split(":")[0] not in LONG_MODULES] == []


def test_a_command_says_what_it_does_within_15_lines() -> None:
    commands = [
        (f"{name(module)}:{node.name}", lines(node.body))
        for module in MODULES
        if module.parent.name == "cli"
        for node in functions(module)
        if is_command(node)
    ]
    assert len(commands) >= 45
    assert [one for one, length in commands if length > 15] == []


def test_only_the_settings_import_the_appliance_inside_a_function() -> None:
    """They find the home before anything else is known, and `--help` must not wait for it."""
    inside = {
        module.name
        for module in MODULES
        if module.parent.name == "cli"
        for function in functions(module)
        for node in ast.walk(function)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("appliance")
    }
    assert inside == {"settings.py"}


@pytest.mark.parametrize("word", TABLE)
def test_every_word_of_the_table_loads(word: str) -> None:
    command = load(word)
    assert command.name == word
    assert (command.help or "").startswith(TABLE[word][1].rstrip("."))


def test_help_imports_no_flow() -> None:
    code = (
        "import sys\n"
        "from appliance.cli.app import main\n"
        "sys.argv = ['appliance', '--help']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = ('appliance.flows', 'appliance.ledger', 'sqlalchemy', 'torch', 'numpy')\n"
        "loaded = [m for m in sys.modules if m.startswith(heavy)]\n"
        "print(loaded, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert all(word in done.stdout for word in TABLE)
