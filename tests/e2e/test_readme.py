"""The documents stay true: the README's commands run, docs/cli.md is what the code says, every exit code is listed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from appliance.cli.reference import exit_codes, reference
from tests.e2e.conftest import Appliance, write_notes, write_passphrase

ROOT = Path(__file__).parents[2]


def test_the_readmes_own_data_section_runs_as_it_stands(tiny_model_dir: Path, tmp_path: Path) -> None:
    section = re.search(r"<!-- begin: own data -->\n```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert section is not None
    shutil.copytree(tiny_model_dir, tmp_path / "my-model")
    write_notes(tmp_path / "notes.csv")
    write_passphrase(tmp_path / "passphrase.txt")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-eu", "-c", section[1]],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    Appliance(tmp_path / "home")("key", "lock", expect=None)  # the section does it, unless it failed before
    assert done.returncode == 0, done.stdout + done.stderr
    assert "differentially private" in done.stdout
    assert (tmp_path / "home" / "runs").is_dir()
    audit_as_the_readme_says(tmp_path, done.stdout)


def audit_as_the_readme_says(directory: Path, printed: str) -> None:
    """The auditor has the bundle and what `init` printed, and nothing else."""
    section = re.search(r"<!-- begin: auditor -->\n```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    fingerprint = re.search(r"^ +((?:[0-9a-f]{4} ){15}[0-9a-f]{4})$", printed, re.MULTILINE)
    digest = re.search(r"^ +([0-9a-f]{64})$", printed, re.MULTILINE)
    assert section is not None
    assert fingerprint is not None
    assert digest is not None
    elsewhere = directory / "another-machine"
    elsewhere.mkdir()
    shutil.move(directory / "bundle", elsewhere / "bundle")
    for pinned, status in ((fingerprint[1], 0), ("0" * 64, 8)):
        shutil.rmtree(elsewhere / "received", ignore_errors=True)
        done = subprocess.run(
            ["bash", "-eu", "-c", section[1]],
            cwd=elsewhere,
            env={"PATH": "/usr/local/bin:/usr/bin:/bin", "FINGERPRINT": pinned},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr
        assert digest[1] in done.stdout


def test_the_command_page_is_what_the_code_says() -> None:
    assert (ROOT / "docs" / "cli.md").read_text() == reference(), "run `make docs`"


def test_exit_codes_do_not_collide() -> None:
    assert sorted(exit_codes()) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 75, 130]


def test_links_of_the_documents_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
