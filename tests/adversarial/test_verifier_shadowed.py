"""The verifier beside files that are named like modules: none of them is imported, however it is called."""

from __future__ import annotations

import ast
import os
import py_compile
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.export import verify
from tests.unit.export.conftest import bundled, copied  # noqa: F401
from tests.unit.export.test_export_interpreters import OTHERS, interpreter

NAMES = sorted({*sys.stdlib_module_names, "sitecustomize", "usercustomize", "verify", "posix", "nt"})
INTACT, TAMPERED = 0, 8


def plant_modules(directory: Path, source: str, names: list[str]) -> None:
    for name in names:
        if name != "verify":  # the file itself
            (directory / f"{name}.py").write_text(source)


def plant_packages(directory: Path, source: str, names: list[str]) -> None:
    for name in names:
        (directory / name).mkdir()
        (directory / name / "__init__.py").write_text(source)


def plant_bytecode(directory: Path, source: str, names: list[str]) -> None:
    """Compiled modules without a source, beside this file and in `__pycache__`."""
    (directory / "planted.py").write_text(source)
    data = Path(py_compile.compile(str(directory / "planted.py"), cfile=str(directory / "planted.pyc"))).read_bytes()
    (directory / "__pycache__").mkdir(exist_ok=True)
    for name in names:
        (directory / f"{name}.pyc").write_bytes(data)
        (directory / "__pycache__" / f"{name}.{sys.implementation.cache_tag}.pyc").write_bytes(data)


def plant_extensions(directory: Path, _: str, names: list[str]) -> None:
    """Shared objects that do not load: whoever imports one fails."""
    for name in names:
        (directory / f"{name}.so").write_bytes(b"not an ELF file")


PLANTS = (plant_modules, plant_packages, plant_bytecode, plant_extensions)
CALLS: dict[str, tuple[str, list[str]]] = {
    "python3 verify.py": (".", ["verify.py"]),
    "python3 -I verify.py": (".", ["-I", "verify.py"]),
    "cd ..; python3 bundle/verify.py": ("..", ["bundle/verify.py"]),
    "cd ..; python3 -I bundle/verify.py": ("..", ["-I", "bundle/verify.py"]),
    "cd adapter; python3 ../verify.py": ("adapter", ["../verify.py"]),
    "python3 -B -X importtime verify.py": (".", ["-B", "-X", "importtime", "verify.py"]),
    "python3 -S verify.py": (".", ["-S", "verify.py"]),
}


def marking(directory: Path) -> str:
    """What a planted module does: leave its name, and end the process with a good verdict."""
    return f"open({str(directory / 'imported.txt')!r}, 'a').write(__name__ + '\\n')\nraise SystemExit(0)\n"


def run(copy: Path, python: str, call: str, **environment: str) -> subprocess.CompletedProcess[str]:
    where, words = CALLS[call]
    command = [python, *words, "--trusted-key", str(copy / "keys.txt")]
    return subprocess.run(
        command, cwd=copy / "bundle" / where, env=environment, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("plant", PLANTS)
def test_nothing_beside_it_is_imported(
    plant: Callable[[Path, str, list[str]], None],
    call: str,
    copied: Path,  # noqa: F811
) -> None:
    assert run(copied, sys.executable, call).returncode == INTACT
    for directory in (copied / "bundle", copied / "bundle" / "adapter", copied):
        plant(directory, marking(copied), NAMES)
    done = run(copied, sys.executable, call)
    assert not (copied / "imported.txt").exists(), (copied / "imported.txt").read_text()
    assert done.returncode == TAMPERED, done.stderr
    assert "does not belong here" in done.stdout


@pytest.mark.parametrize("version", OTHERS)
def test_nor_by_another_python(version: str, copied: Path) -> None:  # noqa: F811
    found = interpreter(version)
    if found is None:
        pytest.skip(f"not run: there is no Python {version} here")
    plant_modules(copied / "bundle", marking(copied), NAMES)
    for call in CALLS:
        assert run(copied, found, call).returncode == TAMPERED, call
        assert not (copied / "imported.txt").exists(), (version, call, (copied / "imported.txt").read_text())


def test_a_linked_directory_is_no_way_around(copied: Path) -> None:  # noqa: F811
    """The path that Python takes from the command line differs from the real one."""
    (copied / "link").symlink_to(copied / "bundle")
    plant_modules(copied / "bundle", marking(copied), NAMES)
    command = [sys.executable, str(copied / "link" / "verify.py"), "--trusted-key", str(copied / "keys.txt")]
    assert subprocess.run(command, cwd=copied / "link", env={}, capture_output=True, check=False).returncode == TAMPERED
    assert not (copied / "imported.txt").exists()


def test_a_search_path_that_leads_there_is_no_way_in(copied: Path) -> None:  # noqa: F811
    """PYTHONPATH is the auditor's own. Isolated, Python ignores it; else nothing is imported through it any more.

    What Python itself imports while it starts it takes from there, before the first line of any file: hence `-I`.
    """
    listed = "import sys; print(*sys.modules)"
    started = subprocess.run([sys.executable, "-c", listed], env={}, capture_output=True, text=True, check=True).stdout
    late = [name for name in NAMES if name not in started.split() and not name.endswith("customize")]
    assert {"json", "argparse", "hashlib", "__future__"} <= {*late}
    plant_modules(copied / "bundle", marking(copied), late)
    search = os.pathsep.join([str(copied / "bundle"), "", "."])
    for call in CALLS:
        assert run(copied, sys.executable, call, PYTHONPATH=search).returncode == TAMPERED, call
    plant_modules(copied / "bundle", marking(copied), NAMES)
    assert run(copied, sys.executable, "python3 -I verify.py", PYTHONPATH=search).returncode == TAMPERED
    assert not (copied / "imported.txt").exists(), (copied / "imported.txt").read_text()


def test_the_test_would_see_it(copied: Path) -> None:  # noqa: F811
    """Evil twin: the same file without its first statements imports what lies beside it, and says that all is well."""
    source = (copied / "bundle" / "verify.py").read_text()
    cleaning = source[source.index("if __name__") : source.index("import argparse")]
    (copied / "bundle" / "verify.py").write_text(source.replace(cleaning, "", 1))
    plant_modules(copied / "bundle", marking(copied), NAMES)
    assert run(copied, sys.executable, "python3 verify.py").returncode == INTACT
    assert (copied / "imported.txt").exists()
    assert run(copied, sys.executable, "python3 -I verify.py").returncode == TAMPERED


def test_sys_alone_is_imported_before_the_path_is_clean() -> None:
    first, *rest = ast.parse(Path(verify.__file__).read_text()).body[1:]
    assert ast.unparse(first) == "import sys"
    assert "sys" in sys.builtin_module_names
    assert ast.unparse(rest[0]).startswith("if __name__ == '__main__':")
    assert {node.id for node in ast.walk(rest[0]) if isinstance(node, ast.Name)} <= {
        *("__name__", "sys", "beside", "roots", "home", "end", "path", "tuple"),
    }
    assert not any(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.walk(rest[0]))


def test_imported_as_a_module_it_leaves_the_path_alone() -> None:
    code = "import sys; before = [*sys.path]; import appliance.export.verify; sys.exit(sys.path != before)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
