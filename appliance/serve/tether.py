"""Become an engine's server that has no network and does not outlive the gateway: `tether PARENT NETWORK FILE COMMAND`.

It leaves the network of the host before it becomes the server. A Unix socket in the file system works across network
namespaces. What was reached is written to FILE: "loopback"; "host" where the policy allows that; "refused" otherwise.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from appliance.errors import IsolationViolated
from appliance.isolation import loopback, process
from appliance.jobs.serve import REFUSED

FAILED = 97
"""Exit status where an isolation that is required is not in force."""


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
    try:
        loopback.enter()
    except IsolationViolated:
        if wanted == "required":
            raise
        return "host"
    return "loopback"


if __name__ == "__main__":
    main()
