"""A seccomp filter that takes the network away for good, from this process and all that it starts.

Denied with EPERM: everything on sockets of every family, Unix sockets included; io_uring, which could do the same
without these calls; reaching into other processes, which may have sockets; and other namespaces, which have other
networks. Under another architecture's call table (32-bit on x86_64) the numbers mean other things, so any call
through it kills the process.

`deny_all_but_tcp` is for ranks in a network namespace with only loopback: it leaves TCP, and the route family of
netlink, by which the C library lists interfaces (`isolation.loopback` has taken the right to change them). A Unix
socket would reach beyond the namespace by its path, and a vsock by the hypervisor, so that is all it leaves.
"""

from __future__ import annotations

import ctypes
import errno
import struct

from appliance.errors import IsolationViolated
from appliance.isolation import kernel, process

# asm/unistd_64.h of x86_64; asm-generic/unistd.h, which aarch64 uses.
_DENIED: dict[str, dict[str, int]] = {
    "x86_64": {
        "socket": 41, "connect": 42, "accept": 43, "sendto": 44, "recvfrom": 45, "sendmsg": 46, "recvmsg": 47,
        "bind": 49, "listen": 50, "socketpair": 53, "accept4": 288, "recvmmsg": 299, "sendmmsg": 307,
        "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "bpf": 321, "unshare": 272, "setns": 308,
    },
    "aarch64": {
        "socket": 198, "socketpair": 199, "bind": 200, "listen": 201, "accept": 202, "connect": 203, "sendto": 206,
        "recvfrom": 207, "sendmsg": 211, "recvmsg": 212, "accept4": 242, "recvmmsg": 243, "sendmmsg": 269,
        "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "bpf": 280, "unshare": 97, "setns": 268,
    },
}  # fmt: skip
_EVERYWHERE = (kernel.IO_URING_SETUP, kernel.IO_URING_ENTER, kernel.IO_URING_REGISTER, kernel.PIDFD_GETFD)
_X32_BIT = 0x40000000
_OF_TCP = ("connect", "accept", "accept4", "bind", "listen", "sendto", "recvfrom", "sendmsg", "recvmsg")
_INET, _INET6, _NETLINK, _ROUTE = 2, 10, 16, 0  # of socket(2): families, and a protocol of the last
_STREAM, _KIND = 1, 0xF  # a kind of socket, and the bits that say the kind

_SET_MODE_FILTER, _FLAG_TSYNC = 1, 1  # linux/seccomp.h
_RET_KILL_PROCESS, _RET_ERRNO, _RET_ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_LOAD, _EQUAL, _AT_LEAST, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06  # linux/bpf_common.h
_NUMBER_OFFSET, _ARCHITECTURE_OFFSET = 0, 4  # struct seccomp_data
_FAMILY_OFFSET, _KIND_OFFSET, _PROTOCOL_OFFSET = (
    16,
    24,
    32,
)  # low halves of its arguments, little-endian


def deny_network() -> None:
    """Install the filter in all threads of this process. It cannot be taken back.

    Raises:
      IsolationViolated: an unsupported machine, or a kernel that does not take the filter.
    """
    _install(tcp=False)


def deny_all_but_tcp() -> None:
    """The same with TCP left: new sockets are streams over IPv4 or IPv6, or for listing interfaces."""
    _install(tcp=True)


def _install(*, tcp: bool) -> None:
    machine = kernel.machine()
    if machine not in _DENIED:
        raise IsolationViolated(f"no network filter for {machine}")
    program = _program(machine, tcp=tcp)
    code = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: a 16-bit count of instructions, then, aligned, a pointer to them.
    descriptor = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    try:
        process.deny_new_privileges()
        result = kernel.syscall(kernel.SECCOMP[machine], _SET_MODE_FILTER, _FLAG_TSYNC, descriptor)
    except OSError as error:
        raise IsolationViolated(f"the kernel does not take the network filter: {error.strerror}") from None
    if result:
        raise IsolationViolated("a thread could not be put under the network filter")


def _program(machine: str, *, tcp: bool = False) -> bytes:
    """The filter as an array of struct sock_filter (u16 code, u8 jump if true, u8 jump if false, u32 constant)."""
    calls = dict(_DENIED[machine])
    if tcp:
        calls = {name: number for name, number in calls.items() if name not in (*_OF_TCP, "socket")}
    numbers = sorted((*calls.values(), *_EVERYWHERE))
    last = _socket_rules(_DENIED[machine]["socket"]) if tcp else []
    allow = len(numbers) + len(last)
    lines = [
        (_LOAD, 0, 0, _ARCHITECTURE_OFFSET),
        (_EQUAL, 1, 0, kernel.ARCHITECTURES[machine]),
        (_RETURN, 0, 0, _RET_KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER_OFFSET),
        (_AT_LEAST, allow + 1, 0, _X32_BIT),
        *((_EQUAL, allow - i, 0, number) for i, number in enumerate(numbers)),
        *last,
        (_RETURN, 0, 0, _RET_ALLOW),
        (_RETURN, 0, 0, _RET_ERRNO | errno.EPERM),
    ]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


def _socket_rules(number: int) -> list[tuple[int, int, int, int]]:
    """What follows the list of denied calls; behind it lie "allow" and, one further, "deny"."""
    return [
        (_EQUAL, 0, 9, number),  # another call: allow
        (_LOAD, 0, 0, _FAMILY_OFFSET),
        (_EQUAL, 4, 0, _INET),
        (_EQUAL, 3, 0, _INET6),
        (_EQUAL, 0, 6, _NETLINK),  # else deny
        (_LOAD, 0, 0, _PROTOCOL_OFFSET),
        (_EQUAL, 3, 4, _ROUTE),  # allow, else deny
        (_LOAD, 0, 0, _KIND_OFFSET),
        (_AND, 0, 0, _KIND),
        (_EQUAL, 0, 1, _STREAM),  # else deny
    ]
