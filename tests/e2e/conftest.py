"""The command line as a user has it: a process, a home, an exit status. Homes are built once and copied."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

PASSPHRASE = "correct horse battery staple"
TOKEN = "quokka-7391-zanzibar"  # in every record of the tiny dataset
RECORDS = 600
GATES = "gates: {int8: {max_loss: 1.0}}\n"  # of the finished run
COLUMNS = ("--prompt", "question", "--completion", "answer")


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
        return self._checked(Done(process.returncode, out, err), words, expect)

    def _checked(self, done: Done, words: tuple[str, ...], expect: int | None) -> Done:
        assert "Traceback" not in done.err, done.err
        assert TOKEN not in done.out + done.err
        if expect is not None:
            assert done.status == expect, f"{' '.join(words)}: {done.status}\n{done.out}\n{done.err}"
        return done

    def here(self, *words: str, expect: int | None = 0) -> Done:
        """Run a command in this process, which has the libraries already: what is prepared or looked up, not tested."""
        from appliance.cli.app import run

        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            status = run(["--home", str(self.home), *words])
        return self._checked(Done(status, out.getvalue(), err.getvalue()), words, expect)

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
    """Write records of patients that are not in the notes."""
    lines = [f"{what} {i},how is {what} stranger {i}?,{TOKEN} {what} {i} is well" for i in range(RECORDS)]
    path.write_text("\n".join(["patient,question,answer", *lines]) + "\n")


@pytest.fixture(scope="session")
def unkeyed_home(built_once: Callable[[str, Callable[[Path], None]], Path], tiny_model_dir: Path) -> Path:
    """A sealed home (policy default, tiny model, dataset `notes`, no watermark key), notes.csv and passphrase.txt."""

    def build(directory: Path) -> None:
        write_passphrase(directory / "passphrase.txt")
        write_notes(directory / "notes.csv")
        appliance = Appliance(directory / "home")
        appliance("init", "--policy", "default")
        with unlocked(appliance):
            appliance("model", "import", str(tiny_model_dir), "--name", "tiny")
            named = ("--name", "notes", "--units", "600")
            appliance("data", "ingest", str(directory / "notes.csv"), *named, *COLUMNS)

    return built_once("unkeyed-home", build)


@pytest.fixture(scope="session")
def template(built_once: Callable[[str, Callable[[Path], None]], Path], unkeyed_home: Path) -> Path:
    """The unkeyed home with a watermark key, as most tests have it."""

    def build(directory: Path) -> None:
        with unsealed(unkeyed_home, directory) as appliance:
            appliance.here("watermark", "keygen")

    return built_once("template-home", build)


@pytest.fixture
def sealed(template: Path, tmp_path: Path) -> Appliance:
    """A copy of the template home, sealed."""
    return copy_home(template, tmp_path)


@pytest.fixture
def appliance(sealed: Appliance) -> Iterator[Appliance]:
    """A copy of the template home, unsealed."""
    with unlocked(sealed):
        yield sealed


@pytest.fixture
def run_file(planned: Callable[..., Path]) -> Path:
    """A run file for three small steps."""
    return planned("run")


@pytest.fixture
def planned(
    built_once: Callable[[str, Callable[[Path], None]], Path], template: Path, tmp_path: Path
) -> Callable[..., Path]:
    """`planned(name, *options, epsilon=...)`: a run file as `plan` writes it in the template home, computed once."""

    def get(name: str, *options: str, epsilon: str = "2") -> Path:
        def build(directory: Path) -> None:
            plan(copy_home(template, directory), directory / f"{name}.yaml", *options, epsilon=epsilon)

        asked = hashlib.sha256(repr((options, epsilon)).encode()).hexdigest()[:12]
        return Path(shutil.copy(built_once(f"plan-{name}-{asked}", build) / f"{name}.yaml", tmp_path))

    return get


@pytest.fixture(scope="session")
def small_run(built_once: Callable[[str, Callable[[Path], None]], Path], template: Path) -> Path:
    """A run file for three small steps, for what is built once. Do not edit it: `rewrite` makes others of it."""

    def build(directory: Path) -> None:
        plan(copy_home(template, directory), directory / "run.yaml")
        shutil.rmtree(directory / "home")

    return built_once("small-run", build) / "run.yaml"


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
def finished_home(built_once: Callable[[str, Callable[[Path], None]], Path], template: Path) -> Path:
    """The template home with one finished run, a dataset `held` of other patients, and what `train start` said."""

    def build(directory: Path) -> None:
        write_strangers(directory / "held.csv", "held out")
        with unsealed(template, directory) as appliance:
            named = ("--name", "held", "--units", str(RECORDS), "--purpose", "evaluation")
            appliance("data", "ingest", str(directory / "held.csv"), *named, *COLUMNS)
            plan(appliance, directory / "run.yaml", "--rank", "8")
            with (directory / "run.yaml").open("a") as file:
                file.write(GATES)
            # One thread: the evaluations take that over.
            started = appliance("--json", "train", "start", str(directory / "run.yaml"), "--threads", "1")
            (directory / "started.json").write_text(started.out)

    return built_once("finished-home", build)


@pytest.fixture(scope="session")
def marked_home(built_once: Callable[[str, Callable[[Path], None]], Path], finished_home: Path) -> Path:
    """The finished home once its run is marked, and what `watermark embed` said."""

    def build(directory: Path) -> None:
        with unsealed(finished_home, directory) as appliance:
            run = json.loads((directory / "started.json").read_text())["run"]
            (directory / "embedded.json").write_text(appliance("--json", "watermark", "embed", run).out)

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
def finished(finished_home: Path, tmp_path: Path) -> tuple[Appliance, dict[str, Any]]:
    """A sealed copy of the finished home, and what `train start` said."""
    return copy_home(finished_home, tmp_path), json.loads((tmp_path / "started.json").read_text())


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


def copy_home(source: Path, directory: Path) -> Appliance:
    """Copy a home with what lies beside it."""
    shutil.copytree(source, directory, dirs_exist_ok=True)
    (directory / "home").chmod(0o700)
    return Appliance(directory / "home")


@contextmanager
def unsealed(source: Path, directory: Path) -> Iterator[Appliance]:
    """Copy a home with what lies beside it, and unseal it meanwhile."""
    with unlocked(copy_home(source, directory)) as appliance:
        yield appliance


@contextmanager
def unlocked(appliance: Appliance) -> Iterator[Appliance]:
    """Unseal a home for the block."""
    appliance.here("key", "unlock", "--passphrase-file", str(appliance.passphrase))
    try:
        yield appliance
    finally:
        appliance.here("key", "lock", expect=None)


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
