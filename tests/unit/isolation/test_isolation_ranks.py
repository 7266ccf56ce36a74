"""The network namespace of several ranks: loopback, no way back, and nobody in it who could change that."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.isolation import loopback

Script = Callable[..., str]


def namespaces() -> bool:
    script = "from appliance.isolation import loopback; loopback.enter()"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, check=False).returncode == 0


needs_namespaces = pytest.mark.skipif(not namespaces(), reason="not run: no user and network namespaces here")

INSIDE = """
from appliance.isolation import loopback
host = os.open("/proc/self/ns/net", os.O_RDONLY)
os.set_inheritable(host, True)
loopback.enter()
body = Path(sys.argv[1]).read_text()
raise SystemExit(subprocess.run([sys.executable, "-c", body, str(host), *sys.argv[2:]], close_fds=False).returncode)
"""


@pytest.fixture
def inside(run: Script, prelude: str, tmp_path: Path) -> Script:
    """`inside(body, *arguments)`: run a script in the namespace, as a rank is started; argument 1 is the host's."""

    def script(body: str, *arguments: object) -> str:
        path = tmp_path / "body.py"
        path.write_text(prelude + body)
        return run(INSIDE, path, *arguments)

    return script


@needs_namespaces
def test_there_is_loopback_and_it_is_another(inside: Script) -> None:
    with socket.create_server(("127.0.0.1", 0)) as outside:
        body = """
from appliance.isolation import loopback
print(loopback.interfaces())
print(refused(lambda: socket.create_connection(("127.0.0.1", int(sys.argv[2])), 5)))  # ECONNREFUSED
print(refused(lambda: socket.create_connection(("192.0.2.1", 9), 5)))  # ENETUNREACH
with socket.create_server(("127.0.0.1", 0)) as own:
    socket.create_connection(own.getsockname(), 5).close()
print(os.geteuid())
"""
        printed = inside(body, outside.getsockname()[1]).splitlines()
        assert printed == ["['lo']", "111", "101", str(os.geteuid())]


@needs_namespaces
def test_there_is_no_capability_and_no_way_back(inside: Script) -> None:
    body = """
setns = {"x86_64": 308, "aarch64": 268}[kernel.machine()]
print(refused(lambda: kernel.syscall(setns, int(sys.argv[1]), 0)))  # EPERM, and no filter is in force yet
status = Path("/proc/self/status").read_text()
print({line.split()[1] for line in status.splitlines() if line.startswith(("CapEff", "CapPrm", "CapBnd"))})
"""
    assert inside(body).splitlines() == ["1", "{'0000000000000000'}"]


def test_a_rank_in_the_network_of_the_host_asks_for_no_key(run: Script) -> None:
    if loopback.interfaces() == ["lo"] and (os.geteuid() != 0 or shutil.which("ip") is None):
        pytest.skip("not run: this machine has no network, and no further interface can be made here")
    body = """
    from appliance.isolation import loopback
    if loopback.interfaces() == ["lo"]:  # as where the whole suite is cut off
        kernel.syscall(kernel.UNSHARE[kernel.machine()], 0x40000000)
        subprocess.run(["ip", "link", "add", "one", "type", "veth", "peer", "name", "other"], check=True)
    try:
        sandbox.require_ranks_alone(IsolationSpec())
    except IsolationViolated as refusal:
        print(refusal.message)
    sandbox.require_ranks_alone(IsolationSpec(network="preferred"))
    """
    assert run(body) == "a rank sees a network beyond loopback"


def test_a_machine_without_namespaces_is_refused_with_a_hint(run: Script) -> None:
    body = """
    from appliance.isolation import loopback
    kernel.UNSHARE = {kernel.machine(): 1 << 20}  # no such call
    try:
        loopback.enter()
    except IsolationViolated as refusal:
        print(refusal.message, refusal.hint)
    """
    assert "the machine gives none" in run(body)
    assert "train in one process" in run(body)


@needs_namespaces
def test_an_inherited_unix_socket_is_refused(inside: Script, tmp_path: Path) -> None:
    body = """
held = socket.socket(socket.AF_UNIX)
try:
    sandbox.enter(IsolationSpec(), sandbox.system_paths(), [Path(sys.argv[2])], ranks=True)
except IsolationViolated as refusal:
    print(refusal.message)
"""
    assert "a network socket is open" in inside(body, tmp_path)
