"""A seccomp filter that takes the network away for good, from this process and all that it starts.

Denied with EPERM: everything on sockets of every family, Unix sockets included; io_uring, which could do the same
without these calls; and reaching into other processes, which may have sockets. Under another architecture's call
table (32-bit on x86_64) the numbers mean other things, so any call through it kills the process.
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
        "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "bpf": 321,
    },
    "aarch64": {
        "socket": 198, "socketpair": 199, "bind": 200, "listen": 201, "accept": 202, "connect": 203, "sendto": 206,
        "recvfrom": 207, "sendmsg": 211, "recvmsg": 212, "accept4": 242, "recvmmsg": 243, "sendmmsg": 269,
        "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "bpf": 280,
    },
}  # fmt: skip
_EVERYWHERE = (kernel.IO_URING_SETUP, kernel.IO_URING_ENTER, kernel.IO_URING_REGISTER, kernel.PIDFD_GETFD)
_X32_BIT = 0x40000000

_SET_MODE_FILTER, _FLAG_TSYNC = 1, 1  # linux/seccomp.h
_RET_KILL_PROCESS, _RET_ERRNO, _RET_ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # linux/bpf_common.h
_NUMBER_OFFSET, _ARCHITECTURE_OFFSET = 0, 4  # struct seccomp_data


def deny_network() -> None:
    """Install the filter in all threads of this process. It cannot be taken back.

    Raises:
      IsolationViolated: an unsupported machine, or a kernel that does not take the filter.
    """
    machine = kernel.machine()
    if machine not in _DENIED:
        raise IsolationViolated(f"no network filter for {machine}")
    program = _program(machine)
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


def _program(machine: str) -> bytes:
    """The filter as an array of struct sock_filter (u16 code, u8 jump if true, u8 jump if false, u32 constant)."""
    numbers = sorted((*_DENIED[machine].values(), *_EVERYWHERE))
    denied = _RET_ERRNO | errno.EPERM
    lines = [
        (_LOAD, 0, 0, _ARCHITECTURE_OFFSET),
        (_EQUAL, 1, 0, kernel.ARCHITECTURES[machine]),
        (_RETURN, 0, 0, _RET_KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER_OFFSET),
        (_AT_LEAST, len(numbers) + 1, 0, _X32_BIT),
        *((_EQUAL, len(numbers) - i, 0, number) for i, number in enumerate(numbers)),
        (_RETURN, 0, 0, _RET_ALLOW),
        (_RETURN, 0, 0, denied),
    ]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)
