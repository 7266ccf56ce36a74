"""The roles as files: every variable is one of its role and specified, nothing but built-in modules is used."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
TOP = ROOT / "deploy" / "ansible"
ROLES = sorted(path.name for path in (TOP / "roles").iterdir())
PLAYS = sorted(path.stem for path in (TOP / "playbooks").glob("*.yml"))
ANSIBLE = ROOT / ".venv-deploy" / "bin" / "ansible-playbook"


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def test_roles_and_plays_are_those_of_the_page() -> None:
    page = (TOP / "README.md").read_text()
    roles = re.search(r"^Roles: (.*)\. Each", page, re.MULTILINE)
    assert roles is not None
    assert sorted(roles[1].split(", ")) == ROLES
    for name in PLAYS:
        assert f"playbooks/{name}.yml" in page


@pytest.mark.parametrize("role", ROLES)
def test_every_variable_of_a_role_has_its_name_and_is_specified(role: str) -> None:
    specified = read(TOP / "roles" / role / "meta/argument_specs.yml")["argument_specs"]
    options = {name for entry in specified.values() for name in entry["options"]}
    defaults = set(read(TOP / "roles" / role / "defaults/main.yml") or {})
    assert all(name.startswith(f"{role}_") for name in options | defaults)
    assert defaults <= options
    assert all(option["description"] for entry in specified.values() for option in entry["options"].values())


@pytest.mark.parametrize("role", ROLES)
def test_only_what_comes_with_ansible_is_used(role: str) -> None:
    for path in (TOP / "roles" / role / "tasks").glob("*.yml"):
        for task in _tasks(read(path)):
            modules = [word for word in task if "." in word]
            assert all(word.startswith("ansible.builtin.") for word in modules), path
            assert len(modules) == 1, (path, task["name"])


def _tasks(listed: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for task in listed:
        found += _tasks(task["block"]) if "block" in task else [task]
    return found


def test_what_carries_a_secret_says_nothing() -> None:
    for path in TOP.rglob("tasks/*.yml"):
        for task in _tasks(read(path)):
            copied = task.get("ansible.builtin.copy", {})
            if "passphrase" in str(copied):
                assert task.get("no_log") is True, task["name"]
                assert task.get("diff") is False, task["name"]


def test_a_newcomers_inventory_has_five_lines() -> None:
    text = (TOP / "inventories/newcomer.yml").read_text()
    assert len(text.splitlines()) == 5
    assert set(read(TOP / "inventories/newcomer.yml")["appliance"]) == {"hosts", "vars"}


@pytest.mark.parametrize("inventory", ["newcomer", "datacenter"])
def test_inventories_name_only_variables_that_there_are(inventory: str) -> None:
    known = set()
    for role in ROLES:
        for entry in read(TOP / "roles" / role / "meta/argument_specs.yml")["argument_specs"].values():
            known |= set(entry["options"])
    named = set(re.findall(rf"\b((?:{'|'.join(ROLES)})_\w+):", (TOP / f"inventories/{inventory}.yml").read_text()))
    assert named
    assert named - {"gpu_nodes"} <= known


@pytest.mark.parametrize("name", PLAYS)
def test_ansible_reads_every_play(name: str) -> None:
    if not ANSIBLE.exists():
        pytest.skip("not run: `make deploy-lint` makes the environment of Ansible")
    command = [str(ANSIBLE), "--syntax-check", "-i", "inventories/newcomer.yml", f"playbooks/{name}.yml"]
    environment = {**os.environ, "ANSIBLE_CONFIG": str(TOP / "ansible.cfg"), "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, cwd=TOP, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", [*TOP.glob("roles/*/files/*")], ids=lambda path: path.name)
def test_shell_scripts_are_scripts(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    if first.startswith("#!"):
        subprocess.run([shutil.which(first.split("/")[-1]) or "sh", "-n", str(path)], check=True)
