"""A seccomp filter that takes the network away for good, from this process and all that it starts.

Denied with EPERM: everything on sockets of every family, Unix sockets included; io_uring, which could do the same
without these calls; reaching into other processes, which may have sockets; and other namespaces, which have other
networks. Under another architecture's call table (32-bit on x86_64) the numbers mean other things, so any call
through it kills the process.

`deny_all_but_tcp` is for ranks in a network namespace with only loopback: it leaves TCP, and the route family of
netlink, by which the C library lists interfaces (`isolation.loopback` has taken the right to change them). A Unix
socket would reach beyond the namespace by its path, and a vsock by the hypervisor, so that is all it leaves.

`deny_all_but_the_drivers` is for the moment in which CUDA's driver starts (`isolation.cuda`), which fails unless it may
bind and listen on a Unix socket; one of the two others comes on top of it as soon as the driver is up.
"""

from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Sequence

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
_OF_THE_DRIVER = ("bind", "listen")
_UNIX, _INET, _INET6, _NETLINK, _ROUTE = 1, 2, 10, 16, 0  # of socket(2): families, and a protocol of the last
_STREAM, _SEQPACKET, _KIND = 1, 5, 0xF  # kinds of socket, and the bits that say the kind

_SET_MODE_FILTER, _FLAG_TSYNC = 1, 1  # linux/seccomp.h
_RET_KILL_PROCESS, _RET_ERRNO, _RET_ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_LOAD, _EQUAL, _AT_LEAST, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06  # linux/bpf_common.h
_NUMBER_OFFSET, _ARCHITECTURE_OFFSET = 0, 4  # struct seccomp_data
_FAMILY_OFFSET, _KIND_OFFSET, _PROTOCOL_OFFSET = 16, 24, 32  # low halves of its arguments, little-endian

_Line = tuple[int, str, str, int]
"""An instruction: code, the label to go to if true and if false ("" is the next line), constant."""


def deny_network() -> None:
    """Install the filter in all threads of this process. It cannot be taken back.

    Raises:
      IsolationViolated: an unsupported machine, or a kernel that does not take the filter.
    """
    _install(tcp=False, driver=False)


def deny_all_but_tcp() -> None:
    """Deny the same with TCP left: new sockets are streams over IPv4 or IPv6, or for listing interfaces."""
    _install(tcp=True, driver=False)


def deny_all_but_the_drivers(*, tcp: bool) -> None:
    """Deny the same but what CUDA's driver needs to start: a Unix socket it may bind and listen on, and nothing more.

    Nobody is served on it: without TCP, connecting says that nobody is there, and accepting, sending and receiving
    are denied. With TCP those calls are left for TCP, so the time until the next filter is for the driver alone.
    """
    _install(tcp=tcp, driver=True)


def _install(*, tcp: bool, driver: bool) -> None:
    machine = kernel.machine()
    if machine not in _DENIED:
        raise IsolationViolated(f"no network filter for {machine}")
    program = _program(machine, tcp=tcp, driver=driver)
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


def _program(machine: str, *, tcp: bool = False, driver: bool = False) -> bytes:
    """Assemble an array of struct sock_filter (u16 code, u8 jump if true, u8 jump if false, u32 constant)."""
    numbers = _DENIED[machine]
    left = {"socket"} if tcp or driver else set()
    left |= set(_OF_TCP) if tcp else set()
    left |= {"connect", *_OF_THE_DRIVER} if driver else set()
    denied = sorted((*(number for name, number in numbers.items() if name not in left), *_EVERYWHERE))
    lines: list[_Line | str] = [
        (_LOAD, "", "", _ARCHITECTURE_OFFSET),
        (_EQUAL, "known", "", kernel.ARCHITECTURES[machine]),
        (_RETURN, "", "", _RET_KILL_PROCESS),
        "known",
        (_LOAD, "", "", _NUMBER_OFFSET),
        (_AT_LEAST, "deny", "", _X32_BIT),
        *((_EQUAL, "deny", "", number) for number in denied),
    ]
    if driver and not tcp:
        lines.append((_EQUAL, "nobody", "", numbers["connect"]))
    if left:
        lines += [(_EQUAL, "", "allow", numbers["socket"]), *_socket_rules(tcp=tcp, driver=driver)]
    lines += ["allow", (_RETURN, "", "", _RET_ALLOW), "deny", (_RETURN, "", "", _RET_ERRNO | errno.EPERM)]
    lines += ["nobody", (_RETURN, "", "", _RET_ERRNO | errno.ENOENT)]  # what connecting to an absent daemon says
    return _assemble(lines)


def _socket_rules(*, tcp: bool, driver: bool) -> list[_Line | str]:
    """List which new sockets are left: streams over IP and route netlink, or the kinds of Unix socket that connect."""
    lines: list[_Line | str] = [(_LOAD, "", "", _FAMILY_OFFSET)]
    if driver:
        lines.append((_EQUAL, "unix", "" if tcp else "deny", _UNIX))
    if tcp:
        lines += [(_EQUAL, "stream", "", _INET), (_EQUAL, "stream", "", _INET6), (_EQUAL, "", "deny", _NETLINK)]
        lines += [(_LOAD, "", "", _PROTOCOL_OFFSET), (_EQUAL, "allow", "deny", _ROUTE)]
        lines += ["stream", (_LOAD, "", "", _KIND_OFFSET), (_AND, "", "", _KIND), (_EQUAL, "allow", "deny", _STREAM)]
    if driver:
        lines += ["unix", (_LOAD, "", "", _KIND_OFFSET), (_AND, "", "", _KIND)]
        lines += [(_EQUAL, "allow", "", _STREAM), (_EQUAL, "allow", "deny", _SEQPACKET)]
    return lines


def _assemble(lines: Sequence[_Line | str]) -> bytes:
    """Assemble instructions with jumps counted in lines; a label names the instruction behind it."""
    labels: dict[str, int] = {}
    code: list[_Line] = []
    for line in lines:
        if isinstance(line, str):
            labels[line] = len(code)
        else:
            code.append(line)

    def jump(at: int, label: str) -> int:
        return labels[label] - at - 1 if label else 0

    return b"".join(
        struct.pack("=HBBI", operation, jump(at, yes), jump(at, no), constant)
        for at, (operation, yes, no, constant) in enumerate(code)
    )
