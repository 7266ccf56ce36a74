"""Every system call that takes a path or an identifier, and with what it is made to reach what lies outside."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import struct
from collections.abc import Callable
from typing import Any

from tests.adversarial.outside import World, call

HERE, EMPTY, NOFOLLOW = -100, 0x1000, 0x100  # linux/fcntl.h: AT_FDCWD, AT_EMPTY_PATH, AT_SYMLINK_NOFOLLOW
Arguments = tuple[Any, ...]


def attacks(w: World) -> dict[str, list[Arguments]]:
    """List for each call the arguments with which it is made. A function among them is called first, in the sandbox."""
    f, new, full = w.path("outside/file"), w.path("outside/new"), w.path("outside/full")
    inside, r, link = w.path("inside/x"), w.path("readable/file"), w.path("outside/link")
    times, user = struct.pack("@4q", 1, 0, 1, 0), w.user
    opened, named = _open(r, os.O_RDONLY), _open(f, os.O_PATH)  # descriptors: Landlock lets anybody name a file
    folder = _open(w.path("readable"), os.O_RDONLY)
    attribute, value = b"user.walk", b"after"
    at = struct.pack("@QII", _address(value), 5, 0)  # struct xattr_args
    key = w.name.encode()
    into, size = ctypes.create_string_buffer(4096), 4096
    process, segment = w.pid, w.ids["memory"]
    handle = ctypes.create_string_buffer(struct.pack("@Ii", 128, 0), 136)
    vector = struct.pack("@QQ", ctypes.addressof(into), 30)
    theirs = struct.pack("@QQ", w.memory, 30)
    return {
        # files, by path
        "open": [(f, os.O_RDWR), (r, os.O_RDWR), (new, os.O_CREAT | os.O_RDWR, 0o600), (f, os.O_RDONLY), (f, os.O_PATH),
                 (f, os.O_WRONLY | os.O_TRUNC)],
        "openat": [(HERE, f, os.O_RDWR), (HERE, r, os.O_RDWR), (HERE, new, os.O_CREAT | os.O_RDWR, 0o600),
                   (HERE, w.path("outside"), os.O_TMPFILE | os.O_RDWR, 0o600), (HERE, r, os.O_RDONLY)],
        "openat2": [(HERE, f, struct.pack("@QQQ", os.O_RDWR | os.O_TRUNC, 0, 0), 24),
                    (HERE, new, struct.pack("@QQQ", os.O_CREAT | os.O_RDWR, 0o600, 0), 24)],
        "creat": [(new, 0o600), (f, 0o600)],
        "truncate": [(f, 1), (r, 1)],
        "rename": [(f, new), (f, inside), (r, inside), (_made(w, "inside/y"), new), (_made(w, "inside/y"), f)],
        "renameat": [(HERE, f, HERE, new), (HERE, r, HERE, inside)],
        "renameat2": [(HERE, f, HERE, w.path("outside/other"), 2), (HERE, f, HERE, new, 1), (HERE, r, HERE, inside, 0)],
        "mkdir": [(new, 0o700)],
        "mkdirat": [(HERE, new, 0o700)],
        "rmdir": [(w.path("outside/empty"),)],
        "unlink": [(f,), (r,)],
        "unlinkat": [(HERE, f, 0), (HERE, w.path("outside/empty"), 0x200), (folder, b"file", 0)],
        "link": [(f, new), (f, inside), (r, inside), (_made(w, "inside/y"), new)],
        "linkat": [(HERE, f, HERE, new, 0), (named, b"", HERE, inside, EMPTY), (opened, b"", HERE, new, EMPTY),
                   (HERE, _link(named), HERE, inside, 0x400)],
        "symlink": [(f, new), (f, inside)],
        "symlinkat": [(f, HERE, new), (f, HERE, inside)],
        "mknod": [(new, 0o010600, 0), (inside, 0o010600, 0), (inside, 0o100600, 0), (inside, 0o140600, 0)],
        "mknodat": [(HERE, new, 0o010600, 0), (HERE, inside, 0o010600, 0), (HERE, inside, 0o020600, 0x103)],
        "chmod": [(f, 0o777), (r, 0o777), (full, 0o777)],
        "fchmodat": [(HERE, f, 0o777), (HERE, r, 0o777), (folder, b"file", 0o777), (HERE, _link(named), 0o777)],
        "fchmodat2": [(HERE, f, 0o777, 0), (named, b"", 0o777, EMPTY), (opened, b"", 0o777, EMPTY)],
        "fchmod": [(opened, 0o777), (named, 0o777)],
        "chown": [(f, user, user), (r, user, user)],
        "lchown": [(link, user, user), (f, user, user)],
        "fchown": [(opened, user, user)],
        "fchownat": [(HERE, f, user, user, 0), (named, b"", user, user, EMPTY), (opened, b"", user, user, EMPTY)],
        "utime": [(f, None), (f, times), (r, times)],
        "utimes": [(f, times), (r, times)],
        "futimesat": [(HERE, f, times), (HERE, r, times)],
        "utimensat": [(HERE, f, times, 0), (HERE, link, times, NOFOLLOW), (opened, None, times, 0),
                      (named, b"", times, EMPTY), (HERE, f, None, 0)],
        "setxattr": [(f, attribute, value, 5, 0), (r, attribute, value, 5, 0)],
        "lsetxattr": [(f, attribute, value, 5, 0)],
        "fsetxattr": [(opened, attribute, value, 5, 0)],
        "setxattrat": [(HERE, f, 0, attribute, at, 16), (named, b"", EMPTY, attribute, at, 16)],
        "removexattr": [(f, attribute)],
        "lremovexattr": [(f, attribute)],
        "fremovexattr": [(opened, attribute)],
        "removexattrat": [(HERE, f, 0, attribute), (named, b"", EMPTY, attribute)],
        "getxattr": [(f, attribute, into, size)],
        "lgetxattr": [(f, attribute, into, size)],
        "fgetxattr": [(opened, attribute, into, size)],
        "getxattrat": [(HERE, f, 0, attribute, struct.pack("@QII", ctypes.addressof(into), size, 0), 16)],
        "listxattr": [(f, into, size)],
        "llistxattr": [(f, into, size)],
        "flistxattr": [(opened, into, size)],
        "listxattrat": [(HERE, f, 0, into, size)],
        "file_getattr": [(HERE, f, into, 24, 0)],
        "file_setattr": [(HERE, f, struct.pack("@QIIII", 0x80, 0, 0, 0, 0), 24, 0)],  # FS_XFLAG_NODUMP
        "stat": [(f, into)], "lstat": [(f, into)], "newfstatat": [(HERE, f, into, 0)],
        "statx": [(HERE, f, 0, 0xFFF, into)], "statfs": [(f, into)],
        "access": [(f, 0)], "faccessat": [(HERE, f, 0)], "faccessat2": [(HERE, f, 0, 0)],
        "readlink": [(link, into, size)], "readlinkat": [(HERE, link, into, size)],
        "chdir": [(w.path("outside"),)], "chroot": [(w.path("outside"),)],
        "inotify_add_watch": [(_watcher, f, 0xFFF), (_watcher, w.path("readable"), 0xFFF)],
        "fanotify_mark": [(-1, 1, 0x3B, HERE, f)],
        "name_to_handle_at": [(HERE, f, handle, into, 0)],
        "open_by_handle_at": [(folder, handle, os.O_RDWR)],
        "execve": [(w.path("readable/program"), _words(w.path("readable/program")), _words())],
        "execveat": [(HERE, w.path("readable/program"), _words(b"x"), _words(), 0)],
        # files, by descriptors that may be had
        "ftruncate": [(opened, 1)], "fallocate": [(opened, 0, 0, 10)], "write": [(opened, b"x", 1)],
        "pwrite64": [(opened, b"x", 1, 0)], "writev": [(opened, vector, 1)], "pwritev": [(opened, vector, 1, 0, 0)],
        "pwritev2": [(opened, vector, 1, 0, 0, 0)], "sendfile": [(opened, folder, None, 1)],
        "copy_file_range": [(opened, None, opened, None, 1, 0)], "splice": [(opened, None, opened, None, 1, 0)],
        "mmap": [(0, 4096, 3, 1, opened, 0)],
        "ioctl": [(opened, 0x40086602, struct.pack("@l", 0x40)),
                  (opened, 0x401C5820, struct.pack("@IIIIIQ", 0x80, *[0] * 5))],
        "fcntl": [(opened, 1024, 0), (folder, 1026, 0x8000003F), (opened, 8, process),
                  (opened, 1036, struct.pack("@Q", 1))],
        "flock": [(opened, 6)],
        "fchdir": [(folder,)], "fstatfs": [(opened, into)], "fstat": [(named, into)],
        "getdents64": [(folder, into, size)],
        # what is known by a number or a name
        "shmget": [(w.key, 4096, 0o600), (w.key + 1, 4096, 0o1600)],
        "shmat": [(segment, None, 0)], "shmdt": [(None,)],
        "shmctl": [(segment, 0, None)],
        "semget": [(w.key, 1, 0), (w.key + 1, 1, 0o1600)],
        "semop": [(w.ids["semaphore"], struct.pack("@HhH", 0, 1, 0), 1)],
        "semtimedop": [(w.ids["semaphore"], struct.pack("@HhH", 0, 1, 0), 1, None)],
        "semctl": [(w.ids["semaphore"], 0, 16, 3)],  # SETVAL
        "msgget": [(w.key, 0), (w.key + 1, 0o1600)],
        "msgsnd": [(w.ids["messages"], struct.pack("@q8s", 1, b"token"), 8, 0o4000)],
        "msgrcv": [(w.ids["messages"], into, 8, 0, 0o4000)],
        "msgctl": [(w.ids["messages"], 0, None)],
        "mq_open": [(key, os.O_RDWR, 0, None), (key + b"2", os.O_CREAT | os.O_RDWR, 0o600, None)],
        "mq_unlink": [(key,)],
        "mq_timedsend": [(_queue(key), b"token", 5, 0, None)],
        "mq_timedreceive": [(_queue(key), ctypes.create_string_buffer(8192), 8192, None, times)],
        "mq_notify": [(_queue(key), struct.pack("@qii", 0, 0, 1))],
        "mq_getsetattr": [(_queue(key), struct.pack("@8q", 0o4000, *[0] * 7), into)],
        "add_key": [(b"user", key, value, 5, -4), (b"user", key, value, 5, -3)],
        "request_key": [(b"user", key, None, -4)],
        "keyctl": [(2, w.serial, value, 5), (21, w.serial), (9, w.serial, -4), (11, w.serial, into, 64)],
        # other processes
        "kill": [(process, signal.SIGTERM), (-process, signal.SIGTERM), (os.getpid(), 0)],
        "tkill": [(process, signal.SIGTERM)],
        "tgkill": [(process, process, signal.SIGTERM)],
        "rt_sigqueueinfo": [(process, signal.SIGTERM, struct.pack("@iii", 15, 0, -1) + bytes(116))],
        "rt_tgsigqueueinfo": [(process, process, signal.SIGTERM, struct.pack("@iii", 15, 0, -1) + bytes(116))],
        "pidfd_open": [(process, 0)],
        "pidfd_send_signal": [(_pidfd(process), signal.SIGTERM, None, 0)],
        "pidfd_getfd": [(_pidfd(process), 0, 0)],
        "process_madvise": [(_pidfd(process), theirs, 1, 20, 0)],
        "process_mrelease": [(_pidfd(process), 0)],
        "ptrace": [(16, process, None, None), (0x4206, process, None, None)],
        "process_vm_readv": [(process, vector, 1, theirs, 1, 0)],
        "process_vm_writev": [(process, vector, 1, theirs, 1, 0)],
        "kcmp": [(process, process, 0, 0, 1)],
        "get_robust_list": [(process, into, into)],
        "prlimit64": [(process, 7, struct.pack("@QQ", 99, 99), None), (process, 7, None, into)],
        "setpriority": [(0, process, 19), (1, process, 19)],
        "getpriority": [(0, process), (2, user)],
        "ioprio_set": [(1, process, 0x4007)], "ioprio_get": [(1, process)],
        "sched_setaffinity": [(process, 8, struct.pack("@Q", 1))], "sched_getaffinity": [(process, 8, into)],
        "sched_setparam": [(process, struct.pack("@i", 0))], "sched_getparam": [(process, into)],
        "sched_setscheduler": [(process, 3, struct.pack("@i", 0))], "sched_getscheduler": [(process,)],
        "sched_setattr": [(process, struct.pack("@IIQiIQQQ", 48, 3, 0, 19, 0, 0, 0, 0), 0)],
        "sched_getattr": [(process, into, 48, 0)], "sched_rr_get_interval": [(process, into)],
        "migrate_pages": [(process, 8, struct.pack("@Q", 1), struct.pack("@Q", 1))],
        "move_pages": [(process, 1, struct.pack("@Q", w.memory & ~0xFFF), None, into, 2)],
        "setpgid": [(0, process)], "getpgid": [(process,)], "getsid": [(process,)],
        "capget": [(struct.pack("@Ii", 0x20080522, process), into)],
        "perf_event_open": [(ctypes.create_string_buffer(struct.pack("@IIQ", 1, 128, 0), 128), process, -1, -1, 0)],
        "setns": [(_open(f"/proc/{process}/ns/net".encode(), os.O_RDONLY), 0), (-1, 0)],
        "prctl": [(62, 2, process, 0, 0), (4, 1, 0, 0, 0), (1, 0, 0, 0, 0), (0x59616D61, process, 0, 0, 0)],
        # sockets
        "socket": [(1, 1, 0), (2, 2, 0), (16, 3, 0), (40, 1, 0)],
        "socketpair": [(1, 1, 0, into)],
        "connect": [(_socket, struct.pack("@H20s", 1, b"\0nobody"), 22)],
        "bind": [(_socket, struct.pack("@H20s", 1, b"\0somebody"), 22)],
    }  # fmt: skip


NEVER_OUTSIDE: dict[str, Arguments] = {
    # Made in a sandbox alone, and with arguments that say nothing even if they got through.
    "mount": (b"none", b"/nonexistent", b"tmpfs", 0, None), "umount2": (b"/nonexistent", 0),
    "pivot_root": (b"/x", b"/x"), "open_tree": (HERE, b"/nonexistent", 0),
    "open_tree_attr": (HERE, b"/nonexistent", 0, None, 0),
    "move_mount": (HERE, b"/nonexistent", HERE, b"/nonexistent", 0), "fsopen": (b"nonexistent", 0),
    "fsconfig": (-1, 0, None, None, 0), "fsmount": (-1, 0, 0), "fspick": (HERE, b"/nonexistent", 0),
    "mount_setattr": (HERE, b"/nonexistent", 0, None, 0), "statmount": (None, None, 0, 0),
    "listmount": (None, None, 0, 0), "unshare": (0,), "bpf": (-1, None, 0), "userfaultfd": (-1,),
    "io_uring_setup": (0, None), "io_uring_enter": (-1, 0, 0, 0, None, 0), "io_uring_register": (-1, 0, None, 0),
    "setuid": (2**32 - 1,), "setgid": (2**32 - 1,), "setreuid": (-1, -1), "setregid": (-1, -1),
    "setresuid": (-1, -1, -1), "setresgid": (-1, -1, -1), "setfsuid": (-1,), "setfsgid": (-1,),
    "setgroups": (2**20, None), "capset": (None, None), "lsm_get_self_attr": (0, None, None, 0),
    "lsm_set_self_attr": (0, None, 0, 0), "lsm_list_modules": (None, None, 0), "adjtimex": (None,),
    "clock_adjtime": (99, None), "clock_settime": (99, None), "settimeofday": (None, b"\xff" * 8),
    "sethostname": (b"x", -1), "setdomainname": (b"x", -1), "reboot": (0, 0, 0, None),
    "kexec_load": (0, 99, None, 0xFFFF), "kexec_file_load": (-1, -1, 0, None, 0xFFFF), "init_module": (None, 0, None),
    "finit_module": (-1, None, 0xFFFF), "delete_module": (b"nonexistent", 0), "iopl": (9,), "ioperm": (2**20, 1, 1),
    "modify_ldt": (99, None, 0), "set_thread_area": (None,), "get_thread_area": (None,), "syslog": (99, None, 0),
    "vhangup": (), "fanotify_init": (2**31, 0), "setsid": (), "personality": (0xFFFFFFFF,), "setrlimit": (99, None),
    "memfd_secret": (2**31,), "remap_file_pages": (0, 0, 0, 0, 0), "inotify_init": (), "inotify_init1": (2**31,),
    "acct": (b"/nonexistent",), "swapon": (b"/nonexistent", 0), "swapoff": (b"/nonexistent",),
    "uselib": (b"/nonexistent",), "ustat": (0, None), "quotactl": (0, None, 0, None), "quotactl_fd": (-1, 0, 0, None),
    "lookup_dcookie": (0, None, 0), "sysfs": (99, None, None), "inotify_rm_watch": (-1, 0), "sync": (),
    "syncfs": (-1,), "io_setup": (0, None), "io_destroy": (0,), "io_submit": (0, 0, None),
    "io_cancel": (0, None, None), "io_getevents": (0, 0, 0, None, None), "io_pgetevents": (0, 0, 0, None, None, None),
    "accept": (-1, None, None), "accept4": (-1, None, None, 0), "listen": (-1, 0),
    "sendto": (-1, None, 0, 0, None, 0), "recvfrom": (-1, None, 0, 0, None, None), "sendmsg": (-1, None, 0),
    "recvmsg": (-1, None, 0), "recvmmsg": (-1, None, 0, 0, None), "sendmmsg": (-1, None, 0, 0),
    "getsockname": (-1, None, None), "getpeername": (-1, None, None), "setsockopt": (-1, 0, 0, None, 0),
    "getsockopt": (-1, 0, 0, None, None), "shutdown": (-1, 0), "clone3": (None, 0), "_sysctl": (None,),
    "create_module": (None, 0), "get_kernel_syms": (None,), "query_module": (None, 0, None, 0, None),
    "nfsservctl": (0, None, None), "getpmsg": (), "putpmsg": (), "afs_syscall": (), "tuxcall": (), "security": (),
    "vserver": (), "epoll_ctl_old": (), "epoll_wait_old": (),
}  # fmt: skip


# --- what some calls are given --------------------------------------------------------------------------------------


def _open(path: bytes, flags: int) -> Callable[[], int]:
    return lambda: os.open(path, flags | os.O_CLOEXEC)


def _queue(name: bytes) -> Callable[[], int]:
    return lambda: inherited.get("queue", -1)


def _pidfd(process: int) -> Callable[[], int]:
    return lambda: inherited.get("process", -1)


def _watcher() -> int:
    return call("inotify_init1", 0)


def _socket() -> int:
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).detach()


def _made(world: World, name: str) -> Callable[[], bytes]:
    """Make a file in the sandbox, to be moved out."""

    def make() -> bytes:
        path = world.root / name
        path.write_text("from inside")
        return bytes(path)

    return make


def _link(descriptor: Callable[[], int]) -> Callable[[], bytes]:
    return lambda: f"/proc/self/fd/{descriptor()}".encode()


def _words(*words: bytes) -> ctypes.Array[Any]:
    return (ctypes.c_char_p * (len(words) + 1))(*words, None)


def _address(value: bytes) -> int:
    return ctypes.cast(ctypes.c_char_p(value), ctypes.c_void_p).value or 0


inherited: dict[str, int] = {}
"""Descriptors that a process had before it entered the sandbox: of the message queue, of the other process."""
