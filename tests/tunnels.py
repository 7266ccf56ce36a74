"""WireGuard between two hosts (`tests.hosts`), in user space, as a deployed server has it.

Each host runs `wireguard-go`; its interface is moved into a namespace of its own, where the address is 10.9.0.1 or
10.9.0.2 and nothing else is, while its packets leave from the host. What the administrator declares lies in a layer
over /etc that only commands in there see.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.hosts import FIRST, SECOND, two_hosts

ENDS, PORT = ("10.9.0.1", "10.9.0.2"), 51820


def with_etc(layer: Path) -> tuple[str, ...]:
    """Words before a command that lay the files of `layer` over /etc, for that command alone. Needs root."""
    script = 'mount -t overlay overlay -o "lowerdir=$1:/etc" /etc && shift && exec "$@"'
    return ("unshare", "-m", "sh", "-c", script, "sh", str(layer))


def declare(layer: Path, interface: str, address: str, *peers: str, implementation: str = "wireguard-go") -> Path:
    """Write a declaration into a layer over /etc; returns the file."""
    (layer / "appliance").mkdir(parents=True, exist_ok=True)
    layer.chmod(0o755)
    path = layer / "appliance" / "link.json"
    said = {"schema": "appliance.link/1", "interface": interface, "implementation": implementation}
    path.write_text(json.dumps(said | {"address": address, "peers": list(peers)}))
    path.chmod(0o644)
    return path


@dataclass
class Tunnel:
    """Two hosts with a tunnel between them.

    Attributes:
      hosts: the network namespaces that are the hosts.
      insides: the network namespaces in which the tunnel ends.
      interfaces: what the ends are called; names of sockets in /run/wireguard too, which all hosts of the tests share.
      keys: public keys.
      layers: over /etc, each with a declaration.
    """

    hosts: list[str]
    insides: list[str]
    interfaces: list[str]
    keys: list[str]
    layers: list[Path]

    def on(self, end: int) -> tuple[str, ...]:
        """Words before a command that is to run at an end of the tunnel."""
        return ("ip", "netns", "exec", self.insides[end], *with_etc(self.layers[end]))

    def forget(self, end: int) -> None:
        """Take the other's key away from an end."""
        _run("wg", "set", self.interfaces[end], "peer", self.keys[1 - end], "remove")

    def remember(self, end: int) -> None:
        """Give it back."""
        _run(*_peer(self, end))


def _run(*command: str, given: str = "") -> str:
    return subprocess.run(command, input=given, capture_output=True, text=True, check=True).stdout.strip()


def _peer(tunnel: Tunnel, end: int) -> tuple[str, ...]:
    other = ("peer", tunnel.keys[1 - end], "allowed-ips", f"{ENDS[1 - end]}/32")
    return ("wg", "set", tunnel.interfaces[end], *other, "endpoint", f"{(SECOND, FIRST)[end]}:{PORT}")


@contextmanager
def tunnel(prefix: str, directory: Path) -> Iterator[Tunnel]:
    """A tunnel that is up; skips, saying so, where it cannot be made."""
    missing = [name for name in ("wireguard-go", "wg", "ip") if shutil.which(name) is None]
    if missing or not os.path.exists("/dev/net/tun"):
        pytest.skip(f"not run: WireGuard in user space needs {', '.join(missing) or '/dev/net/tun'}; see `make tools`")
    with two_hosts(prefix) as hosts, ExitStack() as undo:
        private = [_run("wg", "genkey") for _ in ENDS]
        interfaces = [f"wg{os.getpid()}{end}" for end in "ab"]
        made = Tunnel(
            hosts,
            [f"{host}i" for host in hosts],
            interfaces,
            [_run("wg", "pubkey", given=key) for key in private],
            [directory / interface for interface in interfaces],
        )
        for end in (0, 1):
            declare(made.layers[end], interfaces[end], ENDS[end], ENDS[1 - end])
            _raise_end(made, end, private[end], undo)
        yield made


def _raise_end(made: Tunnel, end: int, private: str, undo: ExitStack) -> None:
    host, inside, interface = made.hosts[end], made.insides[end], made.interfaces[end]
    daemon = subprocess.Popen(
        ["ip", "netns", "exec", host, "wireguard-go", "--foreground", interface],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    undo.callback(daemon.wait)
    undo.callback(daemon.terminate)
    _until(lambda: subprocess.run(["wg", "show", interface], capture_output=True, check=False).returncode == 0)
    _run("wg", "set", interface, "listen-port", str(PORT), "private-key", "/dev/stdin", given=private)
    _run(*_peer(made, end))
    _run("ip", "netns", "add", inside)
    undo.callback(subprocess.run, ["ip", "netns", "del", inside], check=False)
    _run("ip", "-n", host, "link", "set", interface, "netns", inside)
    _run("ip", "-n", inside, "addr", "add", f"{ENDS[end]}/32", "dev", interface)
    for name in (interface, "lo"):
        _run("ip", "-n", inside, "link", "set", name, "up")
    _run("ip", "-n", inside, "route", "add", f"{ENDS[1 - end]}/32", "dev", interface)
    _until(lambda: f":{PORT}" in _run("ip", "netns", "exec", host, "ss", "-lunH"))


def _until(condition: Any) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "WireGuard did not come up"
        time.sleep(0.02)


# --- what is seen on a cable -----------------------------------------------------------------------------------------

WATCH = """
import json, signal, socket, sys
interface, port, needle = sys.argv[1], int(sys.argv[2]), sys.argv[3].encode()
raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)); raw.bind((interface, 0)); raw.settimeout(0.1)
seen, on = {"wireguard": 0, "other": [], "needle": 0}, [1]
signal.signal(signal.SIGTERM, lambda *_: on.clear())
print("ready", flush=True)
while on:
    try: data = raw.recv(65535)
    except TimeoutError: continue
    seen["needle"] += needle in data
    kind = int.from_bytes(data[12:14], "big")
    neighbours = kind == 0x0806 or (kind == 0x86dd and data[20] in (0, 58))
    ports = [int.from_bytes(data[at:at + 2], "big") for at in (34, 36)]
    ours = kind == 0x0800 and data[23] == 17 and ports == [port, port]
    if ours and data[42] in (1, 2, 3, 4) and data[43:46] == bytes(3):
        seen["wireguard"] += 1
    elif not neighbours and len(seen["other"]) < 20: seen["other"].append(data[:60].hex())
print(json.dumps(seen))
"""
"""Counts what passes an interface: WireGuard's messages, frames that hold the needle, and what is neither WireGuard's
nor a question for neighbours."""


@contextmanager
def watched(namespace: str, interface: str, needle: str) -> Iterator[dict[str, Any]]:
    """What passed an interface; filled in when the block ends."""
    command = ["ip", "netns", "exec", namespace, sys.executable, "-c", WATCH, interface, str(PORT), needle]
    seen: dict[str, Any] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watcher:
        assert watcher.stdout is not None
        assert watcher.stdout.readline() == "ready\n"
        try:
            yield seen
        finally:
            watcher.terminate()
            seen |= json.loads(watcher.stdout.read())
