"""Planted leakers: do what an attacker in the worker would do, and see whether anything gets out.

`python -m appliance.isolation.leakers` prints {leaker: "blocked" | "leaked"} as JSON; with `--control` it runs the
same leakers without the sandbox, which must leak wherever the machine itself allows it. Everything stays on this
machine: the targets are planted on loopback and in a temporary directory.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from appliance.errors import IsolationViolated
from appliance.isolation import kernel, loopback, sandbox
from appliance.isolation.targets import Targets
from appliance.jobs.job import IsolationSpec

_SECONDS_EACH = 8
_MODULE = ("-m", "appliance.isolation.leakers")

Plan = dict[str, Any]
"""Where the targets are: token, tcp4, tcp6, udp, dns (ports), unix, outside, secret (paths), pid, descriptor."""


def run_leakers(*, sandboxed: bool = True, rank: bool = False) -> dict[str, str]:
    """Plant targets, run every leaker in a process of its own, and look what arrived.

    Args:
      sandboxed: False is the control.
      rank: the sandbox of one of several ranks, in a network namespace of its own.

    Returns:
      For each leaker "leaked" when its token arrived at the target or it was let through, otherwise "blocked".

    Raises:
      IsolationViolated: the sandbox could not be entered, or the leakers did not run.
    """
    with tempfile.TemporaryDirectory(prefix="leakers-") as directory, Targets(Path(directory)) as targets:
        how = "--rank" if rank else "--inside" if sandboxed else "--unhindered"
        try:
            done = subprocess.run(
                [sys.executable, *_MODULE, how, json.dumps(targets.plan() | {"tcp": rank})],
                capture_output=True,
                timeout=_SECONDS_EACH * len(LEAKERS) + 30,
                check=False,
                env={**os.environ, "RES_OPTIONS": "timeout:1 attempts:1"},
            )
            through: dict[str, bool] = json.loads(done.stdout)
        except (json.JSONDecodeError, subprocess.TimeoutExpired):
            raise IsolationViolated("the planted leakers could not be run in the sandbox") from None
        arrived = targets.arrived()
    return {name: "leaked" if through[name] or name in arrived else "blocked" for name in through}


def _tcp(family: int, address: str, port: int, plan: Plan) -> bool:
    with socket.socket(family, socket.SOCK_STREAM) as connection:
        connection.settimeout(2)
        connection.connect((address, port))
        connection.sendall(plan["token"].encode())
    return True


def _udp(plan: Plan) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as packet:
        return packet.sendto(plan["token"].encode(), ("127.0.0.1", plan["udp"])) > 0


def _dns(plan: Plan) -> bool:
    """Both the resolver of the C library and a query made by hand, with the token as a label."""
    label = plan["token"].encode()
    query = b"\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" + bytes([len(label)]) + label + b"\x00\x00\x01\x00\x01"
    try:
        socket.getaddrinfo(f"{plan['token']}.invalid", 80)
        return True
    except OSError:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as packet:
            return packet.sendto(query, ("127.0.0.1", plan["dns"])) > 0


def _unix(plan: Plan) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(plan["unix"])
        connection.sendall(plan["token"].encode())
    return True


def _any_family(plan: Plan) -> bool:
    """A socket of whatever family and kind: Netlink, packet, raw, vsock, kernel crypto, Bluetooth...

    Ranks keep TCP and the list of interfaces; what they reach with them is for the other leakers to find out.
    """
    kept = {(socket.AF_INET, socket.SOCK_STREAM), (socket.AF_INET6, socket.SOCK_STREAM)} if plan["tcp"] else set()
    for family in range(1, 46):
        if plan["tcp"] and family == socket.AF_NETLINK:
            continue
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET):
            if (family, kind) in kept:
                continue
            try:
                socket.socket(family, kind).close()
            except OSError:
                continue
            return True
    return False


def _packet(plan: Plan) -> bool:
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()
    return True


def _socketpair(plan: Plan) -> bool:
    for end in socket.socketpair():
        end.close()
    return True


def _io_uring(plan: Plan) -> bool:
    """Through when the kernel looks at the arguments at all: a bad address means the call itself is allowed."""
    try:
        kernel.syscall(kernel.IO_URING_SETUP, 1, None)
    except PermissionError:
        return False
    except OSError as error:
        return error.errno != errno.ENOSYS
    return True


def _python(plan: Plan) -> bool:
    script = (
        "import socket,sys; socket.create_connection(('127.0.0.1', int(sys.argv[1])), 2).sendall(sys.argv[2].encode())"
    )
    command = [sys.executable, "-c", script, str(plan["child"]), plan["token"]]
    return subprocess.run(command, capture_output=True, timeout=_SECONDS_EACH - 1, check=False).returncode == 0


def _curl(plan: Plan) -> bool:
    command = ["curl", "-s", "--noproxy", "*", "-m", "2", f"http://127.0.0.1:{plan['curl']}/{plan['token']}"]
    subprocess.run(command, capture_output=True, timeout=_SECONDS_EACH - 1, check=False)
    return False  # nobody answers; what counts is what arrived


def _write_outside(plan: Plan) -> bool:
    return Path(plan["outside"], "token").write_text(plan["token"]) > 0


def _read_outside(plan: Plan) -> bool:
    return Path(plan["secret"]).read_text() == str(plan["token"])


def _borrow_descriptor(plan: Plan) -> bool:
    """Take a socket out of the supervisor, which is not sandboxed."""
    process = kernel.syscall(kernel.PIDFD_OPEN, plan["pid"], 0)
    os.close(kernel.syscall(kernel.PIDFD_GETFD, process, plan["descriptor"], 0))
    return True


def _read_memory(plan: Plan) -> bool:
    with open(f"/proc/{plan['pid']}/mem", "rb"):
        return True


def _i386_socket(plan: Plan) -> bool:
    """socket(AF_INET, SOCK_STREAM, 0) by the 32-bit system call table, whose numbers a naive filter does not know."""
    code = bytes.fromhex("53 b8 67010000 bb 02000000 b9 01000000 31 d2 cd 80 5b c3")
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    return int(ctypes.CFUNCTYPE(ctypes.c_int)(address)()) >= 0


LEAKERS: dict[str, Callable[[Plan], bool]] = {
    "tcp4": lambda plan: _tcp(socket.AF_INET, "127.0.0.1", plan["tcp4"], plan),
    "tcp6": lambda plan: _tcp(socket.AF_INET6, "::1", plan["tcp6"], plan),
    "udp": _udp,
    "dns": _dns,
    "unix": _unix,
    "any-family": _any_family,
    "packet": _packet,
    "socketpair": _socketpair,
    "io-uring": _io_uring,
    "python-child": _python,
    "write-outside": _write_outside,
    "read-outside": _read_outside,
    "borrow-descriptor": _borrow_descriptor,
    "read-memory": _read_memory,
    **({"curl": _curl} if shutil.which("curl") else {}),
    **({"i386-socket": _i386_socket} if kernel.machine() == "x86_64" else {}),
}


def _alone(leaker: Callable[[Plan], bool], plan: Plan) -> bool:
    """Run one leaker in a fork: whatever kills it stops only itself. True if it got through."""
    child = os.fork()
    if child == 0:
        signal.alarm(_SECONDS_EACH)
        try:
            os._exit(0 if leaker(plan) else 1)
        except BaseException:  # noqa: BLE001 - a leaker that fails, however it fails, has not leaked
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def main(arguments: list[str]) -> None:
    """The three ways this module is run: to test (no argument or --control), and as the process of the leakers."""
    if arguments and arguments[0] == "--rank":  # the launcher of the ranks, and then a rank
        loopback.enter()
        os.execv(sys.executable, [sys.executable, *_MODULE, "--inside-rank", arguments[1]])  # noqa: S606 - itself, as a rank is started
    if arguments and arguments[0] in ("--inside", "--inside-rank", "--unhindered"):
        plan: Plan = json.loads(arguments[1])
        if arguments[0] != "--unhindered":
            write = [Path(plan["inside"]), Path("/dev/null")]
            ranks = arguments[0] == "--inside-rank"
            sandbox.enter(IsolationSpec(), read=sandbox.system_paths(), write=write, ranks=ranks)
        result: dict[str, Any] = {name: _alone(leaker, plan) for name, leaker in LEAKERS.items()}
    else:
        result = dict(run_leakers(sandboxed="--control" not in arguments))
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
