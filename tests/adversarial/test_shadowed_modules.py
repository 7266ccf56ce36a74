"""A worker that was taken over leaves modules in its run directory, under every name that Python could look for."""

from __future__ import annotations

import ast
import importlib.metadata
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from appliance.errors import ApplianceError
from appliance.flows import launch
from appliance.isolation import interpreter
from appliance.jobs.model_import import ImportResult
from appliance.jobs.rundir import RunDir

PACKAGE = Path(interpreter.__file__).parents[1]
NAMES = {
    *sys.stdlib_module_names,
    *(name.partition(".")[0] for name in importlib.metadata.packages_distributions()),
    *("appliance", "sitecustomize", "usercustomize"),
}


def plant(directory: Path, marker: Path) -> None:
    """Leave a module of every name, which says that it ran."""
    code = f"open({str(marker)!r}, 'a').write(__name__ + '\\n')\n"
    for name in NAMES:
        if name.isidentifier():
            (directory / f"{name}.py").write_text(code)
    (directory / "appliance").mkdir()
    (directory / "appliance" / "__init__.py").write_text(code)


def test_without_isolation_what_was_planted_runs(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    plant(tmp_path / "run", tmp_path / "ran")
    command = [sys.executable, "-m", "appliance.worker", str(tmp_path / "run")]
    subprocess.run(command, cwd=tmp_path / "run", capture_output=True, check=False)
    assert (tmp_path / "ran").read_text()


@pytest.mark.parametrize("ranks", [1, 2])
def test_no_worker_imports_what_lies_in_its_run_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: int
) -> None:
    """Its job is missing, so it ends soon: after all that it imports before the sandbox."""
    run_dir = RunDir(tmp_path / "run")
    run_dir.path.mkdir()
    plant(run_dir.path, tmp_path / "ran")
    monkeypatch.chdir(run_dir.path)
    monkeypatch.setenv("PYTHONPATH", str(run_dir.path))
    monkeypatch.setenv("PYTHONSTARTUP", str(run_dir.path / "os.py"))
    with pytest.raises(ApplianceError):
        launch.run_worker(run_dir, ImportResult, ranks=ranks)
    assert run_dir.result.exists() or ranks > 1
    assert not (tmp_path / "ran").exists()


def test_the_installed_command_imports_nothing_from_where_it_is_called(tmp_path: Path) -> None:
    command = Path(sysconfig.get_path("scripts"), "appliance")
    if not command.exists():
        pytest.skip("not run: the command is not installed here")
    plant(tmp_path, tmp_path.with_name("ran"))
    done = subprocess.run([command, "--version"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("appliance ")
    assert not tmp_path.with_name("ran").exists()


def test_the_installed_command_imports_nothing_from_where_pythonpath_leads(tmp_path: Path) -> None:
    """But for what Python itself imports before the command's first line, and the package that the command names."""
    command = Path(sysconfig.get_path("scripts"), "appliance")
    if not command.exists():
        pytest.skip("not run: the command is not installed here")
    before = subprocess.run(
        [sys.executable, "-c", "import sys; print(*sys.modules)"], capture_output=True, text=True, check=True
    ).stdout.split()
    plant(tmp_path, tmp_path.with_name("ran"))
    for name in {name.partition(".")[0] for name in before} | {"appliance", "sitecustomize", "usercustomize"}:
        (tmp_path / f"{name}.py").unlink(missing_ok=True)
    (tmp_path / "appliance" / "__init__.py").unlink()
    (tmp_path / "appliance").rmdir()
    environment = {"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"}
    shadowed = subprocess.run(
        [sys.executable, "-m", "appliance", "--version"], env=environment, capture_output=True, check=False
    )
    assert tmp_path.with_name("ran").exists(), shadowed.stderr  # without isolation what was planted runs
    tmp_path.with_name("ran").unlink()
    done = subprocess.run([command, "--version"], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("appliance ")
    assert not tmp_path.with_name("ran").exists()


def test_processes_are_started_by_one_function() -> None:
    """Beside it the installed command starts itself again, before it imports anything, and the verifier of a bundle is
    started, as the paper says it: `python3 -I verify.py`.
    """
    users = [
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.executable"
    ]
    assert sorted(users) == ["__main__.py", "__main__.py", "flows/demo.py", "isolation/interpreter.py"]
    assert '"python3", "-I", "verify.py"' in (PACKAGE / "flows" / "demo.py").read_text()
    assert interpreter.module("x")[1] == "-I"
