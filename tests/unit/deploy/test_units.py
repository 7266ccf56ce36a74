"""The units as files: what they give up, by systemd's own judgement, and that a lifted lock is seen by it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from jinja2 import Environment, FileSystemLoader, StrictUndefined

TEMPLATES = Path(__file__).parents[3] / "deploy/ansible/roles/service/templates"
ANALYZE = shutil.which("systemd-analyze")
GIVEN = {
    "ansible_managed": "Managed by Ansible.",
    "service_outside": "/srv/appliance/anchor /srv/appliance/epochs",
    "service_minutes": 600,
    "service_unseal": "unattended",
    "service_database": "postgresql",
    "service_gpu_devices": ["/dev/nvidia0", "/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"],
}
SERVICES = (
    "appliance-keyagent.service",
    "appliance-run@.service",
    "appliance-serve@.service",
    "appliance-check.service",
)


def write(directory: Path, name: str, *, gpu: bool = False) -> Path:
    """A unit as Ansible writes it, but with a program that is there."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), trim_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined
    )
    text = environment.get_template(f"{name}.j2").render(**GIVEN, service_gpu=gpu)
    path = directory / name
    path.write_text(re.sub(r"/opt/appliance/bin/\S+", "/bin/true", text))
    return path


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    if ANALYZE is None:
        pytest.skip("not run: systemd-analyze is not installed")
    return subprocess.run([ANALYZE, *words], capture_output=True, text=True, check=False)


def exposure(unit: Path) -> float:
    """The exposure level that systemd finds, from 0 to 10."""
    said = analyze("security", "--offline=true", "--no-pager", str(unit)).stdout
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", said)
    assert found is not None, said
    return float(found[1])


@pytest.mark.parametrize("name", SERVICES)
def test_a_unit_is_little_exposed(tmp_path: Path, name: str) -> None:
    unit = write(tmp_path, name)
    assert exposure(unit) <= 0.5
    for lifted in ("PrivateNetwork", "CapabilityBoundingSet", "SystemCallFilter"):
        open_ = tmp_path / f"open-{name}"
        open_.write_text("\n".join(line for line in unit.read_text().splitlines() if not line.startswith(lifted)))
        assert exposure(open_) > exposure(unit), lifted


@pytest.mark.parametrize("name", ["appliance-run@.service", "appliance-serve@.service"])
def test_a_unit_with_gpus_is_little_exposed(tmp_path: Path, name: str) -> None:
    unit = write(tmp_path, name, gpu=True)
    assert exposure(unit) <= 1.0
    allowed = re.findall(r"^DeviceAllow=(\S+) rw$", unit.read_text(), re.MULTILINE)
    assert allowed == GIVEN["service_gpu_devices"]
    assert "DevicePolicy=closed" in unit.read_text()


@pytest.mark.parametrize("name", SERVICES)
@pytest.mark.parametrize("gpu", [False, True])
def test_systemd_reads_the_units_without_a_word(tmp_path: Path, name: str, gpu: bool) -> None:
    unit = write(tmp_path, name, gpu=gpu)
    said = analyze("verify", "--recursive-errors=no", "--man=no", str(unit))
    lines = [line for line in said.stderr.splitlines() if tmp_path.name in line or name in line]
    assert not [line for line in lines if "postgresql@" not in line], said.stderr


def test_calls_that_pass_no_other_lock_are_filtered(tmp_path: Path) -> None:
    """`@system-service` alone lets io_uring and the keyrings through."""
    text = write(tmp_path, "appliance-run@.service").read_text()
    assert re.search(r"^SystemCallFilter=~.*@aio.*@keyring.*io_uring_setup", text, re.MULTILINE)
    assert "LoadCredentialEncrypted=appliance.passphrase" in write(tmp_path, "appliance-keyagent.service").read_text()
