"""A seccomp filter of system calls, for good, for this process and all that it starts.

Landlock decides which files are opened. It does not know `chmod`, `utime`, `setxattr`, shared memory and messages of
System V, the keyring of the kernel, sockets, or signals on older kernels: what a job may call of these, and of all the
rest, is decided here, by the tables of `isolation.calls`. What is denied says EPERM. What is newer than the tables, or
of the x32 numbering, says ENOSYS. Under another architecture's call table (32-bit on x86_64) the numbers mean other
things, so any call through it kills the process.

A job on the CPU starts no process and no program: whatever took it over is gone when it is gone. A job on a GPU may,
because CUDA's driver has not been tried without (`calls.ON_A_GPU`).

A rank in a network namespace with only loopback keeps TCP, and the route family of netlink, by which the C library
lists interfaces (`isolation.loopback` has taken the right to change them). A Unix socket would reach beyond the
namespace by its path, and a vsock by the hypervisor, so that is all it keeps.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from appliance.errors import IsolationViolated
from appliance.isolation import calls, kernel, process

_UNIX, _INET, _INET6, _NETLINK, _ROUTE = 1, 2, 10, 16, 0  # of socket(2): families, and a protocol of the last
_STREAM, _SEQPACKET, _KIND = 1, 5, 0xF  # kinds of socket, and the bits that say the kind
_THREAD = 0x00010000  # linux/sched.h: CLONE_THREAD, and the flags that ask for a namespace
_NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000

# linux/prctl.h: the death signal, core dumps and tracing, the memory map that /proc shows, cores shared with others
_DENIED_ATTRIBUTES = (1, 4, 35, 57, 62, 0x59616D61)
# linux/fcntl.h: signals to an owner, leases and notices on files of others, hints that stay with a file
_DENIED_CONTROLS = (8, 10, 15, 1024, 1026, 1036, 1038, 1040)
# asm-generic/ioctls.h: settings and size of a terminal, bytes that wait, flags of a descriptor
_TERMINAL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
# The same file: input into a terminal. linux/fs.h and what file systems bring: flags, version, project, encryption,
# verity, shared extents, freezing. They change files that were opened for reading, and say so by the second byte.
_DENIED_REQUESTS, _DENIED_KINDS = (0x5412, 0x541C), (0x6600, 0x7600, 0x5800, 0x9400)

# asm-generic/fcntl.h: write, read and write, create, truncate, append, temporary file without a name
_WRITING = 0o1 | 0o2 | 0o100 | 0o1000 | 0o2000 | 0o20000000

_SET_MODE_FILTER, _FLAG_TSYNC = 1, 1  # linux/seccomp.h
_RET_KILL_PROCESS, _RET_ERRNO, _RET_ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_LOAD, _EQUAL, _AT_LEAST, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06  # linux/bpf_common.h
_NUMBER_OFFSET, _ARCHITECTURE_OFFSET, _ARGUMENTS_OFFSET = 0, 4, 16  # struct seccomp_data

_Line = tuple[int, str, str, int]
"""An instruction: code, the label to go to if true and if false ("" is the next line), constant."""
_Block = tuple[_Line | str, ...]
"""What is done about a call: instructions and labels, the last a return."""

_ALLOW: _Block = ((_RETURN, "", "", _RET_ALLOW),)
_DENY: _Block = ((_RETURN, "", "", _RET_ERRNO | errno.EPERM),)
_ABSENT: _Block = ((_RETURN, "", "", _RET_ERRNO | errno.ENOSYS),)
_NOBODY: _Block = ((_RETURN, "", "", _RET_ERRNO | errno.ENOENT),)  # what connecting to an absent daemon says


@dataclass(frozen=True, slots=True)
class _Rules:
    """Whose calls are filtered: those of a rank, of a job on a GPU, and while that GPU's driver starts."""

    tcp: bool = False
    gpu: bool = False
    driver: bool = False
    read_only: bool = False


def restrict_calls(*, tcp: bool = False, gpu: bool = False, read_only: bool = False) -> None:
    """Install the filter in all threads of this process. It cannot be taken back.

    Args:
      tcp: leave TCP, for ranks that talk to each other.
      gpu: leave what CUDA may need and was not tried without.
      read_only: leave no way to make, change or remove a file, whether or not the kernel has Landlock.

    Raises:
      IsolationViolated: an unsupported machine, or a kernel that does not take the filter.
    """
    _install(_Rules(tcp=tcp, gpu=gpu, read_only=read_only))


def restrict_calls_until_the_driver_runs(*, tcp: bool) -> None:
    """Deny the same but what CUDA's driver needs to start: a Unix socket it may bind and listen on (`isolation.cuda`).

    Nobody is served on it: without TCP, connecting says that nobody is there, and accepting, sending and receiving
    are denied. With TCP those calls are left for TCP, so the time until the next filter is for the driver alone.
    `restrict_calls` comes on top of it as soon as the driver is up.
    """
    _install(_Rules(tcp=tcp, gpu=True, driver=True))


def _install(rules: _Rules) -> None:
    machine = kernel.machine()
    if machine not in kernel.ARCHITECTURES:
        raise IsolationViolated(f"no filter of system calls for {machine}")
    program = _program(machine, rules)
    code = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: a 16-bit count of instructions, then, aligned, a pointer to them.
    descriptor = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    try:
        process.deny_new_privileges()
        result = kernel.syscall(kernel.SECCOMP[machine], _SET_MODE_FILTER, _FLAG_TSYNC, descriptor)
    except OSError as error:
        raise IsolationViolated(f"the kernel does not take the filter of system calls: {error.strerror}") from None
    if result:
        raise IsolationViolated("a thread could not be put under the filter of system calls")


# --- what is done about each call -----------------------------------------------------------------------------------


def _decide(name: str, rules: _Rules) -> _Block:
    if rules.read_only and name in calls.ON_FILES:
        return _read_only(name)
    if name in calls.ALLOWED or (rules.gpu and name in calls.ON_A_GPU):
        return _ALLOW
    if name in calls.CHECKED:
        return _check(name, rules)
    if name in calls.OF_TCP and rules.driver and not rules.tcp:
        return {"connect": _NOBODY, "bind": _ALLOW, "listen": _ALLOW}.get(name, _DENY)
    if rules.tcp and (name in calls.OF_TCP or name in calls.ON_SOCKETS):
        return _ALLOW
    if rules.gpu and name in calls.ON_SOCKETS:
        return _ALLOW
    return _ABSENT if name in calls.ABSENT else _DENY


def _read_only(name: str) -> _Block:
    """Leave opening for reading alone; where the flags lie in memory, the C library does without the call."""
    if name == "openat2":
        return _ABSENT
    flags = calls.ON_FILES[name]
    return _DENY if flags is None else _masked(flags, _WRITING, 0)


def _check(name: str, rules: _Rules) -> _Block:
    """Write the test of a call's arguments, by their low halves, which are all that the kernel looks at there."""
    itself, on_cpu = os.getpid(), not rules.gpu
    match name:
        case "clone":
            return _masked(0, _NAMESPACES | (_THREAD if on_cpu else 0), _THREAD if on_cpu else 0)
        case "kill" | "tgkill":
            return _one_of(0, (itself,)) if on_cpu else _ALLOW
        case "sched_setaffinity":
            return _one_of(0, (0, itself)) if on_cpu else _ALLOW
        case "prlimit64":
            return (*_is_null(2, otherwise="set"), *_one_of(0, (0, itself)), "set", *_set_limit(on_cpu, itself))
        case "prctl":
            return _none_of(0, _DENIED_ATTRIBUTES)
        case "fcntl":
            return _none_of(1, _DENIED_CONTROLS)
        case "ioctl" if on_cpu:
            return _one_of(1, _TERMINAL)
        case "ioctl":
            kinds = [(_EQUAL, "none of", "", kind) for kind in _DENIED_KINDS]
            return _none_of(1, _DENIED_REQUESTS, (_AND, "", "", 0xFF00), *kinds)
    return _socket(rules)


def _one_of(argument: int, values: Sequence[int]) -> _Block:
    tests = [(_EQUAL, "one of", "", value) for value in values]
    return (_low(argument), *tests, *_DENY, "one of", *_ALLOW)


def _none_of(argument: int, values: Sequence[int], *more: _Line) -> _Block:
    tests = [(_EQUAL, "none of", "", value) for value in values]
    return (_low(argument), *tests, *more, *_ALLOW, "none of", *_DENY)


def _masked(argument: int, mask: int, expected: int) -> _Block:
    return (_low(argument), (_AND, "", "", mask), (_EQUAL, "", "other", expected), *_ALLOW, "other", *_DENY)


def _is_null(argument: int, *, otherwise: str) -> _Block:
    """Go on behind these lines if the pointer is null."""
    high = (_LOAD, "", "", _ARGUMENTS_OFFSET + 8 * argument + 4)
    return (_low(argument), (_EQUAL, "", otherwise, 0), high, (_EQUAL, "", otherwise, 0))


def _set_limit(on_cpu: bool, itself: int) -> _Block:
    """Refuse limits of other processes; a job on the CPU changes none of its own either, and none of core dumps."""
    if on_cpu:
        return _DENY
    return (_low(0), (_EQUAL, "own", "", 0), (_EQUAL, "own", "", itself), *_DENY, "own", *_ALLOW)


def _socket(rules: _Rules) -> _Block:
    """Say which new sockets are left: streams over IP and route netlink, or the kinds of Unix socket that connect."""
    lines: list[_Line | str] = [_low(0)]
    if rules.driver:
        lines.append((_EQUAL, "unix", "", _UNIX))
    if rules.tcp:
        lines += [(_EQUAL, "stream", "", _INET), (_EQUAL, "stream", "", _INET6), (_EQUAL, "", "deny", _NETLINK)]
        lines += [_low(2), (_EQUAL, "allow", "deny", _ROUTE)]
        lines += ["stream", _low(1), (_AND, "", "", _KIND), (_EQUAL, "allow", "deny", _STREAM)]
    lines += ["deny", *_DENY]
    if rules.driver:
        lines += ["unix", _low(1), (_AND, "", "", _KIND)]
        lines += [(_EQUAL, "allow", "", _STREAM), (_EQUAL, "allow", "", _SEQPACKET), *_DENY]
    return (*lines, "allow", *_ALLOW)


def _low(argument: int) -> _Line:
    return (_LOAD, "", "", _ARGUMENTS_OFFSET + 8 * argument)  # little-endian: the low half comes first


# --- the program ----------------------------------------------------------------------------------------------------


def _program(machine: str, rules: _Rules) -> bytes:
    """Assemble an array of struct sock_filter (u16 code, u8 jump if true, u8 jump if false, u32 constant).

    Calls that are next to each other and treated alike make one block, and the blocks stand in the order of numbers:
    each is passed over by calls with larger ones.
    """
    named = {number: _decide(name, rules) for name, number in calls.numbers(machine).items()}
    last = max(named)
    program = _assemble(
        (
            (_LOAD, "", "", _ARCHITECTURE_OFFSET),
            (_EQUAL, "known", "", kernel.ARCHITECTURES[machine]),
            (_RETURN, "", "", _RET_KILL_PROCESS),
            "known",
            (_LOAD, "", "", _NUMBER_OFFSET),
        )
    )
    for block, alike in groupby(range(last + 1), lambda number: named.get(number, _ABSENT)):
        code = _assemble(block)
        program += struct.pack("=HBBI", _AT_LEAST, len(code) // 8, 0, max(alike) + 1) + code
    return program + _assemble(_ABSENT)


def _assemble(block: Sequence[_Line | str]) -> bytes:
    """Assemble instructions with jumps counted in lines; a label names the instruction behind it."""
    labels: dict[str, int] = {}
    code: list[_Line] = []
    for line in block:
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
