"""Enter the sandbox, then look whether it holds.

Call `enter` before torch and numpy: they start threads, and Landlock binds only the threads started after it.
"""

from __future__ import annotations

import os
import socket
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from appliance.errors import IsolationViolated
from appliance.isolation import landlock, process, seccomp
from appliance.records import IsolationReport, IsolationSpec

NOT_RESTRICTED = "not restricted"

_SYSTEM = (
    *("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/proc", "/sys/devices/system", "/sys/fs/cgroup"),
    *("/etc/ld.so.cache", "/etc/localtime", "/etc/nsswitch.conf", "/etc/passwd", "/etc/group", "/etc/os-release"),
    *("/etc/mime.types", "/etc/ssl/openssl.cnf", "/etc/alternatives"),
    *("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random"),
)


def system_paths() -> tuple[Path, ...]:
    """What Python and torch need to read: system libraries, Python, this package, /proc. No home, no /etc/shadow."""
    package = Path(__file__).resolve().parents[1]
    python = {Path(p) for p in (sys.prefix, sys.base_prefix, sys.exec_prefix)}
    return (*(Path(p) for p in _SYSTEM), *sorted(python), package)


def enter(spec: IsolationSpec, read: Sequence[Path], write: Sequence[Path]) -> IsolationReport:
    """Give up core dumps, privileges, files and the network for good, and check that they are gone.

    Args:
      spec: what is required and what is merely preferred.
      read: what may still be read and executed, beside nothing; see `system_paths`.
      write: what may still be written. `/dev/null` belongs here.

    Returns:
      What was reached.

    Raises:
      IsolationViolated: something required is not in force, threads are running already, or a network socket is open.
    """
    if len(os.listdir("/proc/self/task")) > 1:
        raise IsolationViolated("the sandbox must be entered before any thread is started")
    try:
        process.deny_core_dumps()
        process.deny_new_privileges()
    except OSError as error:
        raise IsolationViolated(f"the process could not be hardened: {error.strerror}") from None
    files = _restrict_files(spec, read, write)
    network = _deny_network(spec)
    return IsolationReport(network=network, files=files, core_dumps="off" if process.core_dumps_denied() else "on")


def _restrict_files(spec: IsolationSpec, read: Sequence[Path], write: Sequence[Path]) -> str:
    if landlock.restrict_files(read, write) and not _root_is_readable():
        return f"restricted by landlock (abi {landlock.abi()})"
    if spec.files == "required":
        raise IsolationViolated(
            "the policy requires that files be restricted, and this kernel does not do it",
            hint="run a kernel with Landlock (5.13 or later, CONFIG_SECURITY_LANDLOCK, lsm=...,landlock)",
        )
    return NOT_RESTRICTED


def _deny_network(spec: IsolationSpec) -> str:
    try:
        _refuse_open_sockets()
        seccomp.deny_network()
        _probe_sockets()
    except IsolationViolated:
        if spec.network == "required":
            raise
        return NOT_RESTRICTED
    return "denied by seccomp"


def _root_is_readable() -> bool:
    """The probe: the root directory itself is readable for everyone, except under Landlock."""
    try:
        os.listdir("/")
    except PermissionError:
        return False
    return True


def _refuse_open_sockets() -> None:
    """A socket that was opened or inherited before would still carry data after the filter is in place."""
    for name in os.listdir("/proc/self/fd"):
        try:
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as held:
                family = held.family
        except OSError:
            continue
        # Unix sockets stay on this machine; a service manager may well have passed one as standard error.
        if family != socket.AF_UNIX:
            raise IsolationViolated(f"a network socket is open (descriptor {name})")


def _probe_sockets() -> None:
    for family, kind in (
        (socket.AF_INET, socket.SOCK_STREAM),
        (socket.AF_INET6, socket.SOCK_DGRAM),
        (socket.AF_UNIX, socket.SOCK_STREAM),
        (socket.AF_NETLINK, socket.SOCK_RAW),
    ):
        try:
            socket.socket(family, kind).close()
        except PermissionError:
            continue
        except OSError as error:
            raise IsolationViolated(f"the network filter is not in force: {error.strerror}") from None
        raise IsolationViolated("the network filter is not in force: a socket could be made")
