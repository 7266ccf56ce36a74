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
from appliance.isolation import cuda, landlock, loopback, process, seccomp, tunnel
from appliance.isolation.gpu import Gpu
from appliance.isolation.tunnel import End
from appliance.jobs.job import IsolationReport, IsolationSpec

NOT_RESTRICTED = "not restricted"
LOOPBACK_ONLY = "loopback only, in a namespace of its own; all but TCP denied by seccomp"
WIREGUARD_ONLY, WIREGUARD_DECLARED = (
    f"{word}, in a namespace with nothing else; all but TCP denied by seccomp"
    for word in (tunnel.BY_KERNEL, tunnel.BY_DECLARATION)
)

_GENERIC_NETLINK = 16  # linux/netlink.h
_SYSTEM = (
    *("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/proc", "/sys/devices/system", "/sys/fs/cgroup"),
    *("/etc/ld.so.cache", "/etc/localtime", "/etc/nsswitch.conf", "/etc/passwd", "/etc/group", "/etc/os-release"),
    *("/etc/mime.types", "/etc/ssl/openssl.cnf", "/etc/alternatives"),
    *("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random"),
)
_OF_RANKS = (Path("/sys/bus/pci/devices"), Path("/sys/devices"))  # gloo looks up what loopback is attached to


def system_paths() -> tuple[Path, ...]:
    """List what Python and torch read: system libraries, Python, this package, /proc. No home, no /etc/shadow."""
    package = Path(__file__).resolve().parents[1]
    python = {Path(p) for p in (sys.prefix, sys.base_prefix, sys.exec_prefix)}
    return (*(Path(p) for p in _SYSTEM), *sorted(python), package)


def require_tunnel(spec: IsolationSpec, address: str) -> None:
    """Require of the machine with this address, before anything is started, what its ranks will require.

    Raises:
      IsolationViolated: the policy requires it and it is not so.
    """
    if spec.network == "required":
        tunnel.require(tunnel.here(address))


def require_ranks_alone(spec: IsolationSpec, end: End | None = None) -> None:
    """Require of one of several ranks, before it asks for a key, that its network leads to the others alone.

    Args:
      spec: what is required.
      end: of the tunnel, where there are ranks on other machines; else there is only loopback.

    Raises:
      IsolationViolated: the policy requires it and it is not so.
    """
    if spec.network != "required":
        return
    if end:
        tunnel.require(end)
    elif loopback.interfaces() != ["lo"]:
        raise IsolationViolated("a rank sees a network beyond loopback")


def enter(
    spec: IsolationSpec,
    read: Sequence[Path],
    write: Sequence[Path],
    *,
    ranks: bool = False,
    end: End | None = None,
    gpu: Gpu | None = None,
    read_only: bool = False,
) -> IsolationReport:
    """Give up core dumps, privileges, files and the network for good, and check that they are gone.

    Args:
      spec: what is required and what is merely preferred.
      read: what may still be read and executed, beside nothing; see `system_paths`.
      write: what may still be written. `/dev/null` belongs here.
      ranks: this process is one of several that talk over TCP; see `isolation.loopback`.
      end: this machine's end of the tunnel, where some of them are on others; see `isolation.tunnel`.
      read_only: leave no call that makes, changes or removes a file, whatever becomes of Landlock.
      gpu: for a job on a GPU: what is left of it to open. Its driver is started on the way; see `isolation.cuda`.

    Returns:
      What was reached.

    Raises:
      IsolationViolated: something required is not in force, threads are running already, or a network socket is open.
      WillNotFit: the GPU's driver does not start.
    """
    if len(os.listdir("/proc/self/task")) > 1:
        raise IsolationViolated("the sandbox must be entered before any thread is started")
    try:
        process.deny_core_dumps()
        process.deny_new_privileges()
    except OSError as error:
        raise IsolationViolated(f"the process could not be hardened: {error.strerror}") from None
    files = _restrict_files(spec, [*read, *(_OF_RANKS if ranks else ())], write, gpu, tcp=ranks)
    network = _leave_ranks(spec, end, gpu) if ranks else _restrict_calls(spec, gpu, read_only)
    return IsolationReport(network=network, files=files, core_dumps="off" if process.core_dumps_denied() else "on")


def _restrict_files(
    spec: IsolationSpec, read: Sequence[Path], write: Sequence[Path], gpu: Gpu | None, *, tcp: bool
) -> str:
    devices, more = (gpu.devices, gpu.read) if gpu else ((), ())
    restricted = landlock.restrict_files([*read, *more], write, devices=devices, own_threads=gpu is not None, tcp=tcp)
    if restricted and not _root_is_readable():
        return f"restricted by landlock (abi {landlock.abi()}){', but for the GPU' if gpu else ''}"
    if spec.files == "required":
        raise IsolationViolated(
            "the policy requires that files be restricted, and this kernel does not do it",
            hint="run a kernel with Landlock (5.13 or later, CONFIG_SECURITY_LANDLOCK, lsm=...,landlock)",
        )
    return NOT_RESTRICTED


def _restrict_calls(spec: IsolationSpec, gpu: Gpu | None, read_only: bool) -> str:
    try:
        _refuse_open_sockets()
        _start_driver(gpu, tcp=False)
        seccomp.restrict_calls(gpu=gpu is not None, read_only=read_only)
        _probe_sockets()
    except IsolationViolated:
        if spec.network == "required":
            raise
        return NOT_RESTRICTED
    return "denied by seccomp"


def _leave_ranks(spec: IsolationSpec, end: End | None, gpu: Gpu | None) -> str:
    try:
        _refuse_open_sockets(unix=False)
        _start_driver(gpu, tcp=True)
        seccomp.restrict_calls(tcp=True, gpu=gpu is not None)
        _probe_sockets(tcp=True)
        if not end and loopback.interfaces() != ["lo"]:
            raise IsolationViolated("a rank sees a network beyond loopback")
        reason = tunnel.objection(end) if end else ""
    except IsolationViolated:
        if spec.network == "required":
            raise
        return NOT_RESTRICTED
    if reason and spec.network == "required":
        raise tunnel.refusal(reason)
    if reason:
        return f"{NOT_RESTRICTED}: {reason}"
    if end is None:
        return LOOPBACK_ONLY
    return WIREGUARD_ONLY if tunnel.described(end) == tunnel.BY_KERNEL else WIREGUARD_DECLARED


def _start_driver(gpu: Gpu | None, *, tcp: bool) -> None:
    """Start the GPU's driver under a filter that leaves it one Unix socket; the filter that follows takes that too."""
    if gpu is not None:
        seccomp.restrict_calls_until_the_driver_runs(tcp=tcp)
        if gpu.ordinal is not None:
            cuda.start(gpu.ordinal)


def _root_is_readable() -> bool:
    """Try to read the root directory itself, which everyone may, except under Landlock."""
    try:
        os.listdir("/")
    except PermissionError:
        return False
    return True


def _refuse_open_sockets(*, unix: bool = True) -> None:
    """Refuse sockets that were opened or inherited before: they would still carry data after the filter is in place.

    Where sending is still possible (`unix` false), an inherited Unix socket would carry data out too.
    """
    for name in os.listdir("/proc/self/fd"):
        try:
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as held:
                family = held.family
        except OSError:
            continue
        # Unix sockets stay on this machine; a service manager may well have passed one as standard error.
        if family != socket.AF_UNIX or not unix:
            raise IsolationViolated(f"a network socket is open (descriptor {name})")


def _probe_sockets(*, tcp: bool = False) -> None:
    more = () if tcp else ((socket.AF_INET, socket.SOCK_STREAM, 0), (socket.AF_NETLINK, socket.SOCK_RAW, 0))
    for family, kind, protocol in (
        *more,
        (socket.AF_INET6, socket.SOCK_DGRAM, 0),
        (socket.AF_UNIX, socket.SOCK_STREAM, 0),
        (socket.AF_NETLINK, socket.SOCK_RAW, _GENERIC_NETLINK),
    ):
        try:
            socket.socket(family, kind, protocol).close()
        except PermissionError:
            continue
        except OSError as error:
            raise IsolationViolated(f"the network filter is not in force: {error.strerror}") from None
        raise IsolationViolated("the network filter is not in force: a socket could be made")
