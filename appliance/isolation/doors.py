"""Planted leakers that open no file and no socket: they change what lies outside, or leave something where others look.

The file rules know none of these ways. Each leaker does what an attacker in the worker would do, and says whether it
got through; what it made where everybody sees it, it removes again.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from appliance.isolation import calls, kernel

Plan = dict[str, Any]
"""As in `isolation.leaks`: of it are used token, outside, inside, secret (paths) and pid."""

_MAKE, _REMOVE = 0o1000 | 0o600, 0  # linux/ipc.h: IPC_CREAT with permissions, IPC_RMID
_USER_KEYRING, _INVALIDATE = -4, 21  # linux/keyctl.h
_GET_FLAGS, _SET_FLAGS = 0x80086601, 0x40086602  # linux/fs.h


def _call(name: str, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    return kernel.syscall(calls.numbers(kernel.machine())[name], *arguments)


def _key(plan: Plan) -> int:
    return int(plan["token"][:7], 16)


def _chmod(plan: Plan) -> bool:
    os.chmod(plan["secret"], 0o640)
    return True


def _chmod_what_it_may_read(plan: Plan) -> bool:
    """Change the mode of a file that it may open: to what it is, so that nothing comes of it."""
    with _readable() as descriptor:
        os.fchmod(descriptor, os.fstat(descriptor).st_mode & 0o7777)
    return True


def _chown(plan: Plan) -> bool:
    os.chown(plan["secret"], os.geteuid(), os.getegid())
    return True


def _utime(plan: Plan) -> bool:
    os.utime(plan["secret"], (0, 0))
    return True


def _attribute(plan: Plan) -> bool:
    os.setxattr(plan["secret"], "user.token", plan["token"].encode())
    return True


def _file_flags(plan: Plan) -> bool:
    """Set the flags of a file that it may open, such as "immutable": to what they are."""
    with _readable() as descriptor:
        fcntl.ioctl(descriptor, _SET_FLAGS, fcntl.ioctl(descriptor, _GET_FLAGS, bytes(8)))
    return True


def _lease(plan: Plan) -> bool:
    """Hold up whoever opens a file for writing: the kernel makes them wait until the lease is given back."""
    with _readable() as descriptor:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    return True


def _hard_link(plan: Plan) -> bool:
    """Give a file that it may not open another name: outside, and where it may open files."""
    for directory in ("outside", "inside"):
        try:
            os.link(plan["secret"], Path(plan[directory], "linked"))
            return True
        except OSError:
            continue
    return False


def _planted_link(plan: Plan) -> bool:
    """Leave a link for whoever writes or reads in its directory later, with more rights."""
    Path(plan["inside"], "link").symlink_to(plan["secret"])
    return True


def _planted_pipe(plan: Plan) -> bool:
    """Leave a pipe, on which a reader waits for ever, and through which a process outside can be talked to."""
    os.mkfifo(Path(plan["inside"], "pipe"))
    return True


def _shared_memory(plan: Plan) -> bool:
    _call("shmctl", _call("shmget", _key(plan), 4096, _MAKE), _REMOVE, None)
    return True


def _message(plan: Plan) -> bool:
    _call("msgctl", _call("msgget", _key(plan), _MAKE), _REMOVE, None)
    return True


def _semaphore(plan: Plan) -> bool:
    _call("semctl", _call("semget", _key(plan), 1, _MAKE), 0, _REMOVE, 0)
    return True


def _message_queue(plan: Plan) -> bool:
    """Make a queue. Under file rules alone it is made and only not opened, so what counts is that it is there."""
    name = plan["token"].encode()
    with suppress(OSError):
        os.close(_call("mq_open", name, os.O_CREAT | os.O_RDWR, 0o600, None))
    _call("mq_unlink", name)
    return True


def _keyring(plan: Plan) -> bool:
    """Leave the token in the keyring of this user, where every process of his finds it."""
    token = plan["token"].encode()
    _call("keyctl", _INVALIDATE, _call("add_key", b"user", token, token, len(token), _USER_KEYRING))
    return True


def _signal(plan: Plan) -> bool:
    os.kill(plan["pid"], signal.SIGCONT)  # to one that runs, so that nothing comes of it
    return True


def _limits(plan: Plan) -> bool:
    """Set a limit of the supervisor: to what it is."""
    limits = struct.pack("@QQ", *resource.prlimit(plan["pid"], resource.RLIMIT_NOFILE))
    _call("prlimit64", plan["pid"], resource.RLIMIT_NOFILE, limits, None)
    return True


def _openness(plan: Plan) -> bool:
    """Let other processes of this user read its memory, and its core be dumped."""
    kernel.prctl(kernel.PR_SET_DUMPABLE, 1)
    return True


def _survival(plan: Plan) -> bool:
    """Go on when the supervisor is gone."""
    kernel.prctl(kernel.PR_SET_PDEATHSIG, 0)
    return True


@contextmanager
def _readable() -> Iterator[int]:
    """Open a file that every worker may read, and that is this user's: his, or of root, for whom it is the same."""
    descriptor = os.open(__file__, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


LEAKERS: dict[str, Callable[[Plan], bool]] = {
    "chmod": _chmod,
    "chmod-readable": _chmod_what_it_may_read,
    "chown": _chown,
    "utime": _utime,
    "attribute": _attribute,
    "file-flags": _file_flags,
    "lease": _lease,
    "hard-link": _hard_link,
    "planted-link": _planted_link,
    "planted-pipe": _planted_pipe,
    "sysv-memory": _shared_memory,
    "sysv-message": _message,
    "sysv-semaphore": _semaphore,
    "message-queue": _message_queue,
    "keyring": _keyring,
    "signal": _signal,
    "limits": _limits,
    "openness": _openness,
    "survival": _survival,
}
