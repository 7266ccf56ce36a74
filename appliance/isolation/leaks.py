"""The planted leakers themselves: each does what an attacker in the worker would do, and says whether it got through.

Each gets the plan of the targets. What arrives at a target counts too, whatever the leaker says.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from appliance.isolation import doors, interpreter, kernel

SECONDS_EACH = 30
_TRIES_AGAIN = 7
"""Seconds for a library that tries again and again: it has sent the token long before."""

Plan = dict[str, Any]
"""Where the targets are: token, tcp4, tcp6, udp, dns (ports), unix, outside, secret (paths), pid, descriptor; and tcp,
gpu: whether the sandbox is that of a rank, of a job on a GPU; gpus: the device nodes of such a job."""
_DEVICES = (
    *("full", "mem", "port", "kvm", "fuse", "vsock", "net/tun", "loop0", "sda", "vda", "nvme0n1", "dri/card0"),
    *("dri/renderD128", "nvidia-modeset", "nvidia-caps/nvidia-cap1", "nvidia-caps-imex-channels/channel0"),
)
"""Device nodes that no job opens; the first is on every machine, and open to everybody."""


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
    """Ask both the resolver of the C library and by a query made by hand, with the token as a label."""
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
    """Open a socket of whatever family and kind: Netlink, packet, raw, vsock, kernel crypto, Bluetooth...

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
    """Try whether the kernel looks at the arguments at all: a bad address means the call itself is allowed."""
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
    command = interpreter.python("-c", script, str(plan["child"]), plan["token"])
    return subprocess.run(command, capture_output=True, timeout=SECONDS_EACH - 1, check=False).returncode == 0


def _http(plan: Plan, port: str, script: str, seconds: int = SECONDS_EACH - 1) -> bool:
    """Ask for the token by a library that speaks HTTP, in a child. Nobody answers; what counts is what arrived."""
    where = f"http://127.0.0.1:{plan[port]}"
    command = interpreter.python("-c", script, where, plan["token"])
    environment = os.environ | {"HF_ENDPOINT": where, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}
    subprocess.run(command, capture_output=True, timeout=seconds, check=False, env=environment)
    return False


_URLLIB = "import sys, urllib.request as u; u.build_opener(u.ProxyHandler({})).open('/'.join(sys.argv[1:]), timeout=1)"
_REQUESTS = "import sys, requests as r; s = r.Session(); s.trust_env = False; s.get('/'.join(sys.argv[1:]), timeout=1)"
_HUB = "import sys, huggingface_hub as h; h.hf_hub_download('some/model', sys.argv[2], etag_timeout=1)"


def _curl(plan: Plan) -> bool:
    command = ["curl", "-s", "--noproxy", "*", "-m", "2", f"http://127.0.0.1:{plan['curl']}/{plan['token']}"]
    subprocess.run(command, capture_output=True, timeout=SECONDS_EACH - 1, check=False)
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


def _device(plan: Plan) -> bool:
    """Open any device node but those of the job: disks, memory, other drivers; without a GPU also the GPUs."""
    gpus = [] if plan["gpu"] else [Path(name) for name in plan["gpus"]]
    return any(_opens(path) for path in (*(Path("/dev", name) for name in _DEVICES), *gpus))


def _opens(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))
    except OSError:
        return False
    return True


def _shared_memory(plan: Plan) -> bool:
    """Open shared memory by name, which everybody on this machine can."""
    path = Path("/dev/shm", plan["token"])  # noqa: S108 - the point of it
    try:
        return path.write_text(plan["token"]) > 0
    finally:
        path.unlink(missing_ok=True)


def _other_process(plan: Plan) -> bool:
    """Change something of the supervisor in /proc: to what it is, so that nothing comes of it."""
    path = Path(f"/proc/{plan['pid']}/oom_score_adj")
    return path.write_text(path.read_text()) > 0


def _i386_socket(plan: Plan) -> bool:
    """Make socket(AF_INET, SOCK_STREAM, 0) by the 32-bit system call table, which a naive filter does not know."""
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
    "urllib": lambda plan: _http(plan, "urllib", _URLLIB),
    **({"requests": lambda plan: _http(plan, "requests", _REQUESTS)} if find_spec("requests") else {}),
    **({"hub": lambda plan: _http(plan, "hub", _HUB, _TRIES_AGAIN)} if find_spec("huggingface_hub") else {}),
    "write-outside": _write_outside,
    "read-outside": _read_outside,
    "borrow-descriptor": _borrow_descriptor,
    "read-memory": _read_memory,
    "device": _device,
    "shared-memory": _shared_memory,
    "other-process": _other_process,
    **({"curl": _curl} if shutil.which("curl") else {}),
    **({"i386-socket": _i386_socket} if kernel.machine() == "x86_64" else {}),
    **doors.LEAKERS,
}
