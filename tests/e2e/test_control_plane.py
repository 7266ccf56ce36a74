"""The control plane alone: an environment that has what `pip install appliance` brings, and nothing more.

There is no index to install from in the tests, so the packages are taken from here: those that the appliance requires
without an extra, and what they require, each file by its record.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest

from tests.conftest import MEDIA

ROOT = MEDIA.parent
COMPUTE = (
    *("torch", "opacus", "peft", "transformers", "bitsandbytes", "safetensors", "gguf"),
    *("starlette", "uvicorn", "h11", "xllamacpp"),
)


def required() -> set[str]:
    """The distributions that the appliance needs without an extra, and those that they need."""
    found: dict[str, set[str]] = {}
    waiting = [split(line) for line in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]]
    while waiting:
        name, extras = waiting.pop()
        if name in found and extras <= found[name]:
            continue
        found[name] = found.get(name, set()) | extras
        for line in distribution(name).requires or ():
            text, _, marker = line.partition(";")
            if not marker or holds(marker, found[name]):
                waiting.append(split(text))
    return set(found)


def split(requirement: str) -> tuple[str, set[str]]:
    """Name and extras of a requirement."""
    parts = re.match(r"\s*([A-Za-z0-9._-]+)\s*(?:\[([^]]*)\])?", requirement)
    assert parts
    return parts[1].lower(), {extra.strip() for extra in (parts[2] or "").split(",") if extra.strip()}


def holds(marker: str, extras: set[str]) -> bool:
    from packaging.markers import Marker

    return any(Marker(marker).evaluate({"extra": extra}) for extra in extras or {""})


def link(package: Distribution, target: Path) -> None:
    """Put the files of a distribution beneath `target`, as links."""
    for file in package.files or ():
        if ".." in file.parts or file.parts[0] == "bin":
            continue
        source, place = Path(str(package.locate_file(file))), target / file
        if source.exists() and not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(source)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has the control plane's packages only."""
    directory = tmp_path_factory.mktemp("control")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(directory / "venv")], check=True)
    packages = directory / "venv" / "lib" / f"python3.{sys.version_info[1]}" / "site-packages"
    names = required()
    assert not names & set(COMPUTE)
    for name in names:
        link(distribution(name), packages)
    (packages / "appliance.pth").write_text(f"{ROOT}\n")
    return directory / "venv" / "bin" / "python"


def run(python: Path, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    passphrase = home.parent / "passphrase"
    passphrase.touch(mode=0o600)
    passphrase.write_text("a long passphrase of the control plane\n")
    environment = {"PATH": os.environ["PATH"], "HOME": str(home.parent), "APPLIANCE_PASSPHRASE_FILE": str(passphrase)}
    command = [str(python), "-m", "appliance", "--home", str(home), "--json", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=home.parent)


def test_everything_but_training_works_without_torch(alone: Path, tmp_path: Path) -> None:
    found = subprocess.run([str(alone), "-c", "import torch"], capture_output=True, text=True, check=False)
    assert "ModuleNotFoundError" in found.stderr
    home = tmp_path / "home"
    (tmp_path / "notes.csv").write_text("question,answer\n" + "".join(f"what is {n},it is {n}\n" for n in range(600)))
    try:
        for arguments in (
            ("init", "--policy", "default"),
            ("key", "unlock"),
            ("watermark", "keygen"),
            ("data", "ingest", str(tmp_path / "notes.csv"), "--name", "notes", "--units", "600", "--prompt", "question",
             "--completion", "answer"),
            ("budget", "show"),
            ("policy", "show"),
            ("ledger", "verify"),
        ):  # fmt: skip
            done = run(alone, home, *arguments)
            assert done.returncode == 0, (arguments, done.stdout, done.stderr)
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "llama"}))
        refused = run(alone, home, "model", "import", str(tmp_path / "model"), "--name", "m")
        assert refused.returncode == 11, refused.stderr
        assert "appliance[compute]" in refused.stdout + refused.stderr
    finally:
        run(alone, home, "key", "lock")


def test_help_of_every_verb_needs_no_torch(alone: Path, tmp_path: Path) -> None:
    for noun in ("train", "evaluate", "watermark", "report", "export", "model", "serve", "decide"):
        assert run(alone, tmp_path / "home", noun, "--help").returncode == 0
