"""Two network namespaces joined by a veth pair, as two hosts: 10.77.0.1 and 10.77.0.2."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

FIRST, SECOND = "10.77.0.1", "10.77.0.2"


@contextmanager
def two_hosts(prefix: str) -> Iterator[list[str]]:
    """The names of the namespaces; skips, saying so, where they cannot be made."""
    names = [f"{prefix}{os.getpid()}{end}" for end in "ab"]
    script = """
        set -e
        ip netns add {0}; ip netns add {1}
        ip link add veth0 netns {0} type veth peer name veth0 netns {1}
        ip -n {0} addr add 10.77.0.1/24 dev veth0; ip -n {0} link set veth0 up; ip -n {0} link set lo up
        ip -n {1} addr add 10.77.0.2/24 dev veth0; ip -n {1} link set veth0 up; ip -n {1} link set lo up
    """.format(*names)
    try:
        made = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
        if made.returncode:
            pytest.skip("not run: network namespaces as hosts need root and iproute2")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
