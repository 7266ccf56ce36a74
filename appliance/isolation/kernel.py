"""The Linux system calls that Python has no name for: prctl, seccomp, Landlock. x86_64 and aarch64."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from collections.abc import Mapping

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.syscall.restype = ctypes.c_long

ARCHITECTURES: Mapping[str, int] = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""AUDIT_ARCH_* of the machines that are supported (linux/audit.h)."""

# linux/prctl.h
PR_SET_PDEATHSIG, PR_GET_DUMPABLE, PR_SET_DUMPABLE = 1, 3, 4
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS, PR_GET_NO_NEW_PRIVS = 38, 39

# Numbers from 424 on are the same on every architecture (asm-generic/unistd.h).
IO_URING_SETUP, IO_URING_ENTER, IO_URING_REGISTER = 425, 426, 427
PIDFD_OPEN, PIDFD_GETFD = 434, 438
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446
SECCOMP = {"x86_64": 317, "aarch64": 277}
UNSHARE = {"x86_64": 272, "aarch64": 97}


def machine() -> str:
    """Find the architecture of this process, as a key of ARCHITECTURES if it is supported."""
    # A 32-bit process on a 64-bit kernel makes other system calls than the machine's name says.
    return platform.machine() if ctypes.sizeof(ctypes.c_void_p) == 8 else f"32-bit {platform.machine()}"


def prctl(option: int, argument: int = 0) -> int:
    """Get or set an attribute of this process; see prctl in section 2 of the manual. Raises OSError."""
    return _check(_LIBC.prctl(option, ctypes.c_ulong(argument), 0, 0, 0))


def syscall(number: int, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    """Call any system call with integers, buffers or null pointers. Raises OSError."""
    return _check(_LIBC.syscall(ctypes.c_long(number), *(_argument(a) for a in arguments)))


def _argument(value: int | bytes | ctypes.Array[ctypes.c_char] | None) -> object:
    return ctypes.c_long(value) if isinstance(value, int) else value


def _check(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code or errno.EINVAL, os.strerror(code))
    return result
