"""The units of several machines as files: systemd reads them, for both kinds of WireGuard, and they give up much."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tests.unit.deploy.test_units import analyze, exposure

ROLES = Path(__file__).parents[3] / "deploy/ansible/roles"
UNITS = ("appliance-together@.service", "appliance-join@.service")
GIVEN: dict[str, Any] = {
    "ansible_managed": "Managed by Ansible.",
    "role_path": str(ROLES / "link"),
    "link_interface": "wg0",
    "link_outside": "/srv/appliance/anchor",
    "link_database": "sqlite",
    "link_gpu_devices": ["/dev/nvidia0"],
    "link_address": "10.9.0.1",
    "link_machines": ["one", "two", "three"],
    "link_peers": ["two", "three"],
    "link_rendezvous_port": 29400,
    "hostvars": {"two": {"link_address": "10.9.0.2"}, "three": {"link_address": "10.9.0.3"}},
}


def write(directory: Path, name: str, implementation: str = "kernel", *, gpu: bool = False) -> Path:
    """A unit as Ansible writes it, but with programs that are there."""
    environment = Environment(
        loader=FileSystemLoader(ROLES / "link/templates"), trim_blocks=True, undefined=StrictUndefined
    )
    environment.globals["lookup"] = lambda _, path, template_vars: (
        Environment().from_string(Path(path).read_text()).render(template_vars)
    )
    environment.filters["extract"] = lambda key, among, name: among[key][name]
    text = environment.get_template(f"{name}.j2").render(**GIVEN, link_implementation=implementation, link_gpu=gpu)
    path = directory / name
    path.write_text(re.sub(r"/(opt/appliance/bin|usr/bin)/[a-z-]+", "/bin/true", text))
    return path


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("name", UNITS)
def test_a_unit_of_the_link_reaches_its_peers_and_is_little_exposed(tmp_path: Path, name: str, gpu: bool) -> None:
    unit = write(tmp_path, name, gpu=gpu)
    lines = unit.read_text().splitlines()
    assert "NetworkNamespacePath=/run/netns/appliance" in lines
    assert "IPAddressAllow=10.9.0.1 10.9.0.2 10.9.0.3" in lines
    assert "IPAddressDeny=any" in lines
    assert "PrivateNetwork=yes" in lines  # without the namespace there is none at all
    assert ("DeviceAllow=/dev/nvidia0 rw" in lines) == gpu
    assert exposure(unit) <= 1.0
    said = analyze("verify", "--recursive-errors=no", "--man=no", str(unit))
    assert [line for line in said.stderr.splitlines() if name in line] == []


def test_the_control_nodes_unit_names_all_nodes(tmp_path: Path) -> None:
    (start,) = re.findall("^ExecStart=.*$", write(tmp_path, UNITS[0]).read_text(), re.MULTILINE)
    nodes = "--node /etc/appliance/nodes/two.pub --node /etc/appliance/nodes/three.pub"
    assert start.endswith(f"--nnodes 3 --rendezvous 10.9.0.1:29400 {nodes}")


@pytest.mark.parametrize("implementation", ["kernel", "wireguard-go"])
def test_the_link_comes_up_either_way(tmp_path: Path, implementation: str) -> None:
    unit = write(tmp_path, "appliance-link.service", implementation)
    said = analyze("verify", "--recursive-errors=no", "--man=no", str(unit))
    assert [line for line in said.stderr.splitlines() if unit.name in line] == []
    text = unit.read_text()
    assert ("DynamicUser=yes" in text) == (implementation != "kernel")
    assert ("Type=oneshot" in text) == (implementation == "kernel")
