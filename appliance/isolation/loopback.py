"""A network namespace with only loopback: where several ranks of one run talk to each other, and to nobody else.

`enter` is for the process that starts the ranks. It makes a user namespace together with the network namespace, also
for root: a rank that is root only in there has no right to join the namespace of the host. What it starts has no
capability at all, so that nobody in there changes what the network is. Python 3.11 has no `os.unshare`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path

from appliance.errors import IsolationViolated
from appliance.isolation import kernel

_NEW_USER, _NEW_NET = 0x10000000, 0x40000000  # linux/sched.h
_GET_FLAGS, _SET_FLAGS, _UP = 0x8913, 0x8914, 0x1  # linux/sockios.h, linux/if.h


def enter() -> None:
    """Leave the network of the host for good; loopback is up when this returns. Call it before any thread is started.

    The user keeps the number that files and peers know it by.

    Raises:
      IsolationViolated: the kernel or its configuration does not allow such namespaces.
    """
    _unshare(_NEW_USER | _NEW_NET, _raise_loopback)
    if interfaces() != ["lo"]:
        raise IsolationViolated("the new network namespace has more than loopback")


def confine() -> None:
    """Stay in the network namespace of this process, without the right to change it or to join another.

    For ranks on several machines, whose namespace the administrator made. Call it before any thread is started.

    Raises:
      IsolationViolated: the kernel or its configuration does not allow user namespaces.
    """
    _unshare(_NEW_USER, lambda: None)


def _unshare(what: int, furnish: Callable[[], None]) -> None:
    user, group = os.geteuid(), os.getegid()
    try:
        kernel.syscall(kernel.UNSHARE[kernel.machine()], what)
        Path("/proc/self/setgroups").write_text("deny")  # or an ordinary user may not map a group
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
        furnish()
        _drop_capabilities()
    except (OSError, KeyError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"no system call for {kernel.machine()}"
        raise IsolationViolated(
            f"several ranks need a namespace of their own, and the machine gives none: {reason}",
            hint="allow unprivileged user namespaces (user.max_user_namespaces, AppArmor), or train in one process",
        ) from None


def interfaces() -> list[str]:
    """Name the network interfaces that this process can see."""
    lines = Path("/proc/self/net/dev").read_text().splitlines()[2:]
    return sorted(line.partition(":")[0].strip() for line in lines)


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as anything:
        request = struct.pack("16sh14x", b"lo", 0)  # struct ifreq
        _, flags = struct.unpack("16sh14x", fcntl.ioctl(anything, _GET_FLAGS, request))
        fcntl.ioctl(anything, _SET_FLAGS, struct.pack("16sh14x", b"lo", flags | _UP))


def _drop_capabilities() -> None:
    """Drop them from the bounding set, so that no program started from here on has any, not even as root."""
    for capability in range(64):
        try:
            kernel.prctl(kernel.PR_CAPBSET_DROP, capability)
        except OSError as error:
            if error.errno == errno.EINVAL and capability > 0:  # behind the last that this kernel knows
                return
            raise
