"""Hardening of one process: it leaves no memory image, gains no privilege and does not outlive its supervisor."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.errors import IsolationViolated, WillNotFit
from appliance.isolation import kernel


def harden(supervisor_pid: int) -> None:
    """Deny core dumps, tracing and new privileges; die when the supervisor dies.

    Call it first, in the main thread: the kernel ties the death signal to the thread that started this process.

    Args:
      supervisor_pid: process id of the parent that must outlive this one.

    Raises:
      IsolationViolated: the supervisor is already gone, or the kernel refuses.
    """
    try:
        deny_core_dumps()
        deny_new_privileges()
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    except OSError as error:
        raise IsolationViolated(f"the process could not be hardened: {error.strerror}") from None
    # Had the supervisor died before the call above, no signal would ever come.
    if os.getppid() != supervisor_pid:
        raise IsolationViolated("the supervisor is gone")


def deny_core_dumps() -> None:
    """Deny core files, and memory access by other processes of the same user. Raises OSError.

    The limit is 1 byte, not 0: both prevent a core file, but for core handlers behind a pipe the kernel ignores 0
    and honours only 1 (fs/coredump.c). Programs that are executed inherit the limit, but not the dumpable flag.
    """
    most = resource.getrlimit(resource.RLIMIT_CORE)[1]
    limit = 0 if most == 0 else 1  # who may not raise it to 1 again
    resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)


def limit_memory(most: int) -> None:
    """Limit what this process may hold of its own, in bytes; files that it maps do not count. Raises OSError."""
    limit = resource.getrlimit(resource.RLIMIT_DATA)[1]
    most = most if limit == resource.RLIM_INFINITY else min(most, limit)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def own_memory() -> int:
    """Tell how many bytes this process holds of its own, as `RLIMIT_DATA` counts them. Raises OSError."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmData:")[2].split(maxsplit=1)[0]) << 10


@contextmanager
def growth_limited(most: int) -> Iterator[None]:
    """Limit, within the block, what this process may hold beyond what it holds now, in bytes. Raises OSError.

    Raises:
      WillNotFit: more was needed.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    finite = [limit for limit in (own_memory() + most, soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(finite), hard))
    try:
        yield
    except MemoryError:
        raise WillNotFit("more memory would be needed than such files may take") from None
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def deny_new_privileges() -> None:
    """Keep setuid programs and file capabilities from raising privileges; needed by seccomp and Landlock."""
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)


def core_dumps_denied() -> bool:
    """Tell whether `deny_core_dumps` is in force."""
    limit, _ = resource.getrlimit(resource.RLIMIT_CORE)
    return 0 <= limit <= 1 and kernel.prctl(kernel.PR_GET_DUMPABLE) == 0
