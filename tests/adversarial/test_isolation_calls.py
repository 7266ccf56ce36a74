"""Every system call that takes a path or an identifier, in the sandbox and out of it: what changed outside?

A file rule knows nothing of `chmod` or of shared memory. So nothing is believed of a call by its name: each is made,
aimed at files, System V objects, queues, keys and a process that lie outside, by root and by an ordinary user, and
everything outside is looked at before and after. Made without the sandbox, the same calls change what they aim at.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.isolation import calls, kernel, landlock
from tests.adversarial.attacks import NEVER_OUTSIDE, attacks
from tests.adversarial.outside import World

ROOT = Path(__file__).parents[2]
NOBODY = 65534
USERS = [os.geteuid(), *([NOBODY] if os.geteuid() == 0 else [])]
Walk = Callable[[str, int], dict[str, dict[str, Any]]]

pytestmark = pytest.mark.skipif(
    not landlock.abi() or kernel.machine() != "x86_64", reason="not run: needs Landlock, and the calls of x86_64"
)

HARMLESS = """
    brk mprotect munmap mremap msync mincore madvise mlock mlock2 munlock mlockall munlockall pkey_mprotect
    pkey_alloc pkey_free mseal map_shadow_stack mbind set_mempolicy get_mempolicy set_mempolicy_home_node membarrier
    memfd_create arch_prctl read readv pread64 preadv preadv2 close close_range dup dup2 dup3 lseek poll ppoll select
    pselect6 pipe pipe2 eventfd eventfd2 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2
    timerfd_create timerfd_settime timerfd_gettime signalfd signalfd4 tee vmsplice fsync fdatasync fadvise64 readahead
    sync_file_range cachestat getdents getcwd umask exit exit_group futex futex_waitv futex_wake futex_wait
    futex_requeue set_robust_list rseq set_tid_address restart_syscall rt_sigaction rt_sigprocmask rt_sigreturn
    rt_sigpending rt_sigtimedwait rt_sigsuspend sigaltstack pause nanosleep clock_nanosleep getitimer setitimer alarm
    timer_create timer_settime timer_gettime timer_getoverrun timer_delete wait4 waitid seccomp landlock_create_ruleset
    landlock_add_rule landlock_restrict_self uretprobe uprobe time gettimeofday clock_gettime clock_getres times
    getrusage getrlimit sysinfo uname getrandom getcpu sched_yield sched_get_priority_max sched_get_priority_min getpid
    gettid getppid getpgrp getuid geteuid getgid getegid getgroups getresuid getresgid fork vfork clone
"""
"""They act on memory, descriptors and time of the process itself. Starting processes is tested beside the filter."""

TELLS = """
    stat lstat newfstatat statx statfs fstat fstatfs access faccessat faccessat2 readlink readlinkat chdir fchdir
    open openat getdents64 flock getpriority ioprio_get sched_getaffinity sched_getparam sched_getscheduler
    sched_getattr sched_rr_get_interval getpgid getsid capget
"""
"""What is left open to every job: sizes and names of files that it may not open, what it may read, how processes are
scheduled. `flock` locks a file that it may read: a bit that another process sees, and nothing that stays."""

SCHEDULING = {"setpriority", "ioprio_set", "sched_setaffinity", "sched_setscheduler", "sched_setattr"}
"""What a job on a GPU could change outside: when a process of the same user runs. Drivers set it for their threads."""
ON_A_GPU = {*SCHEDULING, "sched_setparam", "inotify_init", "inotify_add_watch", "pidfd_open", "personality", "setpgid"}
ON_A_GPU |= {"setsid", "sync"}

CHANGES = """
    add_key chmod chown creat execve execveat fchmod fchmodat fchown fchownat fremovexattr fsetxattr futimesat ioctl
    ioprio_set keyctl kill lchown link linkat lremovexattr lsetxattr mkdir mkdirat mknod mknodat mq_open mq_timedreceive
    mq_timedsend mq_unlink msgctl msgget msgrcv msgsnd open openat pidfd_send_signal prlimit64 process_vm_writev
    removexattr rename renameat renameat2 rmdir rt_sigqueueinfo rt_tgsigqueueinfo sched_setaffinity sched_setattr
    sched_setscheduler semget semop semtimedop setpriority setxattr shmat shmctl shmget symlink symlinkat tgkill tkill
    truncate unlink unlinkat utime utimensat utimes
"""
SUCCEEDS = {"ptrace", "process_vm_readv", "pidfd_getfd", "pidfd_open", "mq_notify", "semctl", "request_key", "kcmp"}
SUCCEEDS |= {"socket", "socketpair", "bind", "fcntl", "prctl", "inotify_add_watch", "name_to_handle_at", "getxattr"}
NEWER = {"fchmodat2", "file_setattr", "openat2", "removexattrat", "setxattrat"}  # than some kernels


@pytest.fixture
def walk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    """`walk(sandbox, user)`: what every call did. One at a time: two of one user share that user's keyring."""
    lock = tmp_path_factory.getbasetemp().parent / "walks.lock"
    with (
        lock.open("w") as held,
        tempfile.TemporaryDirectory(prefix="walk-") as directory,
    ):  # not pytest's, which an ordinary user cannot enter
        fcntl.flock(held, fcntl.LOCK_EX)
        Path(directory).chmod(0o711)

        def made(kind: str, user: int) -> dict[str, dict[str, Any]]:
            command = [sys.executable, "-m", "tests.adversarial.walking", kind, str(user), directory]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
            assert done.returncode == 0, done.stderr
            found: dict[str, dict[str, Any]] = json.loads(done.stdout)
            return found

        yield made


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("kind", ["cpu", "rank", "gpu"])
def test_no_call_changes_what_lies_outside_of_the_sandbox(walk: Walk, kind: str, user: int) -> None:
    found = walk(kind, user)
    if kind == "rank" and found["stat"]["errors"] == [-2]:
        pytest.skip("not run: no user and network namespaces here")
    changed = {name: result["changed"] for name, result in found.items() if result["changed"]}
    assert changed == {name: ["process"] for name in (SCHEDULING if kind == "gpu" else ())}
    more = {"gpu": ON_A_GPU, "rank": {"socket"}}.get(kind, set())
    left = {name for name, result in found.items() if 0 in result["errors"]}
    assert left == {*TELLS.split(), *more}
    refusals = {name: set(result["errors"]) for name, result in found.items() if name not in left}
    plain = {errno.EPERM, errno.EACCES}
    others = {name for name, errors in refusals.items() if not errors <= plain}
    assert {name: errors for name, errors in refusals.items() if name in others & set(calls.DENIED)} == {}
    assert refusals["clone3"] == {errno.ENOSYS}


@pytest.mark.parametrize("user", USERS)
def test_without_the_sandbox_the_same_calls_change_it(walk: Walk, user: int) -> None:
    found = walk("none", user)
    changed = {name for name, result in found.items() if result["changed"]}
    known = {name for name in NEWER if errno.ENOSYS not in found[name]["errors"]}
    assert changed >= {*CHANGES.split(), *known}
    assert {name for name in SUCCEEDS if 0 not in found[name]["errors"]} == set()


def test_every_call_is_made_or_said_to_be_harmless(tmp_path: Path) -> None:
    world = World(tmp_path / "world", os.geteuid())
    world.ids = dict.fromkeys(("memory", "semaphore", "messages"), 0)
    lists = (set(attacks(world)), set(NEVER_OUTSIDE), set(HARMLESS.split()))
    numbers = calls.numbers("x86_64")
    assert set.union(*lists) == set(numbers)
    assert sum(map(len, lists)) == len(numbers)
    assert not set(HARMLESS.split()) & set(calls.DENIED)
