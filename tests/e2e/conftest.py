"""The command line as a user has it: a process, a home, an exit status. Homes are built once and copied."""

from __future__ import annotations

import fcntl
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
import yaml

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


def write_strangers(path: Path, what: str) -> None:
    """Records of patients that are not in the notes."""
    lines = [f"{what} {i},how is {what} stranger {i}?,{TOKEN} {what} {i} is well" for i in range(RECORDS)]
    path.write_text("\n".join(["patient,question,answer", *lines]) + "\n")


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
    return copied(template, tmp_path)


@pytest.fixture
def appliance(sealed: Appliance) -> Iterator[Appliance]:
    """A copy of the template home, unsealed."""
    sealed("key", "unlock")
    yield sealed
    sealed("key", "lock", expect=None)


@pytest.fixture(scope="session")
def planned(built_once: Callable[[str, Callable[[Path], None]], Path], template: Path) -> Path:
    """A run file for three small steps, as `train plan` writes it in any copy of the template home. Do not edit it."""

    def build(directory: Path) -> None:
        plan(copied(template, directory), directory / "run.yaml")
        shutil.rmtree(directory / "home")

    return built_once("run-file", build) / "run.yaml"


@pytest.fixture
def run_file(planned: Path, tmp_path: Path) -> Path:
    """A copy of that run file."""
    return Path(shutil.copy(planned, tmp_path / "run.yaml"))


def rewrite(planned: Path, path: Path, *, epsilon: float = 2.0, rank: int = 2, **train: Any) -> Path:
    """Write a run file of another name, for the run that the file is named after; it returns the path."""
    document = yaml.safe_load(planned.read_text())
    assert train.keys() <= document["train"].keys()
    document["name"] = path.stem
    document["privacy"]["epsilon"] = epsilon
    document["lora"]["r"] = rank
    document["train"] |= train
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def plan(appliance: Appliance, path: Path, *options: str, epsilon: str = "2") -> None:
    small = ("--steps", "3", "--batch", "60", "--max-tokens", "64", "--rank", "2")
    appliance("train", "plan", "notes", "tiny", "--epsilon", epsilon, "--out", str(path), *small, *options)


@pytest.fixture(scope="session")
def marked_home(built_once: Callable[[str, Callable[[Path], None]], Path], template: Path) -> Path:
    """A home with one finished and marked run, and another that was reserved before there was any key."""

    def build(directory: Path) -> None:
        appliance = copied(template, directory)
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
def finished_home(built_once: Callable[[str, Callable[[Path], None]], Path], template: Path, planned: Path) -> Path:
    """The template home with a held-out dataset of other patients, and with a finished run of the file `run.yaml`."""

    def build(directory: Path) -> None:
        write_strangers(directory / "held.csv", "held out")
        shutil.copy(planned, directory / "run.yaml")
        with unsealed(template, directory) as appliance:
            for_evaluation = ("--name", "held", "--units", "600", "--purpose", "evaluation")
            columns = ("--prompt", "question", "--completion", "answer")
            appliance("data", "ingest", str(directory / "held.csv"), *for_evaluation, *columns)
            appliance("train", "start", str(directory / "run.yaml"), "--threads", "1")  # evaluations take it over

    return built_once("finished-home", build)


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


def copied(source: Path, directory: Path) -> Appliance:
    """Copy a home with what lies beside it."""
    shutil.copytree(source, directory, dirs_exist_ok=True)
    (directory / "home").chmod(0o700)
    return Appliance(directory / "home")


@contextmanager
def unsealed(source: Path, directory: Path) -> Iterator[Appliance]:
    """Copy a home with what lies beside it, and unseal it meanwhile."""
    with unlocked(copied(source, directory)) as appliance:
        yield appliance


@contextmanager
def unlocked(appliance: Appliance) -> Iterator[Appliance]:
    """Unseal a home for the block."""
    appliance("key", "unlock")
    try:
        yield appliance
    finally:
        appliance("key", "lock", expect=None)


def keep(built: Path, name: str) -> None:
    """Keep the sealed home of a directory of `built_once` as it is now, under a name."""
    shutil.copytree(built / "home", built / name / "home")
    shutil.copy(built / "passphrase.txt", built / name)


@contextmanager
def in_place(built: Path, name: str) -> Iterator[Appliance]:
    """The home that was kept under this name, unsealed where it was built: its jobs name their files by such paths.

    One test has it at a time, and has it as it was kept.
    """
    with open(built / "in-place.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(built / "home")
        shutil.copytree(built / name, built, dirs_exist_ok=True)
        (built / "home").chmod(0o700)
        with unlocked(Appliance(built / "home")) as appliance:
            yield appliance
