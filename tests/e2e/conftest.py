"""The command line as a user has it: a process, a home, an exit status. Homes are built once and copied."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

PASSPHRASE = "correct horse battery staple"
TOKEN = "quokka-7391-zanzibar"  # in every record of the tiny dataset
RECORDS = 600
GATES = "gates: {int8: {max_loss: 1.0}}\n"  # of the marked run


@dataclass
class Done:
    """A command that ended."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON document of --json."""
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value


@dataclass
class Appliance:
    """`appliance --home HOME ...` as a subprocess; `options` are those of the interpreter."""

    home: Path
    environment: dict[str, str] = field(default_factory=dict)
    prefix: tuple[str, ...] = ()
    options: tuple[str, ...] = ("-I",)

    def popen(self, *words: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "APPLIANCE_PASSPHRASE_FILE": str(self.passphrase), **self.environment}
        return subprocess.Popen(
            [*self.prefix, sys.executable, *self.options, "-m", "appliance", "--home", str(self.home), *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def __call__(self, *words: str, expect: int | None = 0) -> Done:
        process = self.popen(*words)
        out, err = process.communicate(timeout=900)
        assert "Traceback" not in err, err
        assert TOKEN not in out + err
        if expect is not None:
            assert process.returncode == expect, f"{' '.join(words)}: {process.returncode}\n{out}\n{err}"
        return Done(process.returncode, out, err)

    def json(self, *words: str, expect: int = 0) -> dict[str, Any]:
        return self("--json", *words, expect=expect).document

    @property
    def passphrase(self) -> Path:
        return self.home.with_name("passphrase.txt")


def write_passphrase(path: Path) -> None:
    path.touch(mode=0o600)
    path.write_text(PASSPHRASE + "\n")


def write_notes(path: Path, records: int = RECORDS) -> None:
    lines = ["patient,question,answer"]
    lines += [f"p{i // 2},how is patient {i}?,{TOKEN} number {i} feels well today" for i in range(records)]
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="session")
def template(built_once: Callable[[str, Callable[[Path], None]], Path], tiny_model_dir: Path) -> Path:
    """A directory with a sealed home (policy default, tiny model, dataset `notes`), notes.csv and passphrase.txt."""

    def build(directory: Path) -> None:
        write_passphrase(directory / "passphrase.txt")
        write_notes(directory / "notes.csv")
        appliance = Appliance(directory / "home")
        appliance("init", "--policy", "default")
        appliance("key", "unlock")
        try:
            appliance("watermark", "keygen")
            appliance("model", "import", str(tiny_model_dir), "--name", "tiny")
            columns = ("--prompt", "question", "--completion", "answer")
            appliance("data", "ingest", str(directory / "notes.csv"), "--name", "notes", "--units", "600", *columns)
        finally:
            appliance("key", "lock")

    return built_once("template-home", build)


@pytest.fixture
def sealed(template: Path, tmp_path: Path) -> Appliance:
    """A copy of the template home, sealed."""
    for name in ("home", "notes.csv", "passphrase.txt"):
        source = template / name
        target = tmp_path / name
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    (tmp_path / "home").chmod(0o700)
    return Appliance(tmp_path / "home")


@pytest.fixture
def appliance(sealed: Appliance) -> Iterator[Appliance]:
    """A copy of the template home, unsealed."""
    sealed("key", "unlock")
    yield sealed
    sealed("key", "lock", expect=None)


@pytest.fixture
def run_file(appliance: Appliance, tmp_path: Path) -> Path:
    """A run file for three small steps."""
    path = tmp_path / "run.yaml"
    plan(appliance, path)
    return path


def plan(appliance: Appliance, path: Path, *options: str, epsilon: str = "2") -> None:
    small = ("--steps", "3", "--batch", "60", "--max-tokens", "64", "--rank", "2")
    appliance("train", "plan", "notes", "tiny", "--epsilon", epsilon, "--out", str(path), *small, *options)


@pytest.fixture(scope="session")
def marked_home(built_once: Callable[[str, Callable[[Path], None]], Path], template: Path) -> Path:
    """A home with one finished and marked run, and another that was reserved before there was any key."""

    def build(directory: Path) -> None:
        for source in template.iterdir():
            target = directory / source.name
            shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
        (directory / "home").chmod(0o700)
        appliance = Appliance(directory / "home")
        appliance("key", "unlock")
        try:
            plan = ("train", "plan", "notes", "tiny", "--epsilon", "2", "--steps", "3", "--batch", "60", "--rank", "8")
            appliance(*plan, "--out", str(directory / "run.yaml"))
            with (directory / "run.yaml").open("a") as file:
                file.write(GATES)
            run = appliance.json("train", "start", str(directory / "run.yaml"))["run"]
            embedded = appliance.json("watermark", "embed", run)
            (directory / "embedded.json").write_text(json.dumps(embedded))
        finally:
            appliance("key", "lock")

    return built_once("marked-home", build)


@pytest.fixture(scope="session")
def quantised_home(built_once: Callable[[str, Callable[[Path], None]], Path], marked_home: Path) -> Path:
    """The marked home, and beside it in `q8` its model as `model quantize` wrote it for llama.cpp."""

    def build(directory: Path) -> None:
        with unsealed(marked_home, directory) as appliance:
            run = json.loads((directory / "embedded.json").read_text())["run_id"]
            small = ("--predictions", "0", "--out", str(directory / "q8"))
            made = appliance.json("model", "quantize", run, "--to", "q8_0", *small)
            (directory / "quantised.json").write_text(json.dumps(made))

    return built_once("quantised-home", build)


@pytest.fixture
def marked(marked_home: Path, tmp_path: Path) -> Any:
    """An unsealed copy of the marked home, and what `watermark embed` said."""
    with unsealed(marked_home, tmp_path) as appliance:
        yield appliance, json.loads((tmp_path / "embedded.json").read_text())


@pytest.fixture
def quantised(quantised_home: Path, tmp_path: Path) -> Any:
    """An unsealed copy of the quantised home, what `model quantize` said, and the directory that it wrote."""
    with unsealed(quantised_home, tmp_path) as appliance:
        yield appliance, json.loads((tmp_path / "quantised.json").read_text()), tmp_path / "q8"


@contextmanager
def unsealed(source: Path, directory: Path) -> Iterator[Appliance]:
    """Copy a home with what lies beside it, and unseal it meanwhile."""
    shutil.copytree(source, directory, dirs_exist_ok=True)
    (directory / "home").chmod(0o700)
    appliance = Appliance(directory / "home")
    appliance("key", "unlock")
    try:
        yield appliance
    finally:
        appliance("key", "lock", expect=None)
