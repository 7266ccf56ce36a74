"""Become an engine's server that has no network and does not outlive the gateway: `tether PARENT NETWORK FILE COMMAND`.

It leaves the network of the host before it becomes the server. A Unix socket in the file system works across network
namespaces. What it reaches from then on is written to FILE: "none" where sockets of a network are refused already, as
in the appliance's unit; "loopback"; "host" where the policy allows that; "refused" otherwise.
"""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress
from pathlib import Path

from appliance.errors import IsolationViolated
from appliance.isolation import loopback, process
from appliance.jobs.serve import REFUSED

FAILED = 97
"""Exit status where an isolation that is required is not in force."""
FAMILIES = (socket.AF_INET, *(family for family in range(1, 46) if family not in (socket.AF_INET, socket.AF_UNIX)))
"""All but the file system's, the commonest first: where it opens, no other is tried. SMC falls back to TCP."""
KINDS = (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET)


def main() -> None:
    """Become the command."""
    parent, network, told, *command = sys.argv[1:]
    try:
        reached = _leave_network(network)
        process.harden(int(parent))
    except IsolationViolated:
        Path(told).write_text(REFUSED)
        sys.exit(FAILED)
    Path(told).write_text(reached)
    os.umask(0o077)
    os.execvp(command[0], command)  # noqa: S606 - no shell is wanted


def _leave_network(wanted: str) -> str:
    if not any(map(_opens, FAMILIES)):
        return "none"
    try:
        loopback.enter()
    except IsolationViolated:
        if wanted == "required":
            raise
        return "host"
    return "loopback"


def _opens(family: int) -> bool:
    """Tell whether this process can have sockets of a family. What it becomes can have no more: no filter is lifted."""
    for kind in KINDS:
        with suppress(OSError):
            socket.socket(family, kind).close()
            return True
    return False


if __name__ == "__main__":
    main()
