"""Landlock: which files this process, and all that it starts, may still open (linux/landlock.h).

Rights are granted beneath directories or on single files; everything else is refused. Descriptors that are open
already are not affected. It binds the calling thread and those started later, so it is used before any thread.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Sequence
from pathlib import Path

from appliance.errors import IsolationViolated
from appliance.isolation import kernel, process

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIR, _REMOVE_FILE = 1 << 4, 1 << 5
_MAKE_CHAR, _MAKE_DIR, _MAKE_REG, _MAKE_SOCK, _MAKE_FIFO, _MAKE_BLOCK, _MAKE_SYM = (1 << bit for bit in range(6, 13))
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15

_READ = _EXECUTE | _READ_FILE | _READ_DIR
# No EXECUTE: what a worker may write it may not run. No devices, sockets, pipes or links: who reads its directory
# afterwards, with more rights, finds files and directories.
_WRITE = _READ_FILE | _READ_DIR | _WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG
_WRITE |= _REFER | _TRUNCATE | _IOCTL_DEV
_DEVICE = _READ_FILE | _WRITE_FILE | _IOCTL_DEV
_CHANGE = _READ_FILE | _READ_DIR | _WRITE_FILE | _TRUNCATE  # what is there already; nothing is made or removed
_ON_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV

_BIND_TCP_AND_CONNECT_TCP = 0b11
_SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS = 0b11
_QUERY_VERSION, _RULE_PATH_BENEATH = 1, 1


def abi() -> int:
    """Ask for the Landlock ABI of the running kernel; 0 where there is none or it is turned off."""
    try:
        return kernel.syscall(kernel.LANDLOCK_CREATE_RULESET, None, 0, _QUERY_VERSION)
    except OSError:
        return 0


def restrict_files(
    read: Sequence[Path],
    write: Sequence[Path],
    *,
    devices: Sequence[Path] = (),
    own_threads: bool = False,
    tcp: bool = False,
) -> bool:
    """Allow reading and executing beneath `read`, reading and writing beneath `write`, and nothing else.

    Where the kernel can, TCP, signals to outside and abstract Unix sockets are refused as well.

    Args:
      read: directories or files; those that do not exist are passed over.
      write: directories or files; the same.
      devices: device nodes that may be opened for reading and writing, and for ioctl where the kernel asks (ABI 5).
      own_threads: allow writing what this process may change of its own threads in /proc, such as their names. A
        child of it, which is another process, may not.
      tcp: leave TCP alone, for ranks that talk to each other.

    Returns:
      False where the kernel has no Landlock; nothing is restricted then.

    Raises:
      IsolationViolated: the kernel has Landlock and refuses the rules.
    """
    version = abi()
    if not version:
        return False
    try:
        process.deny_new_privileges()
        ruleset = _create(version, tcp=tcp)
        try:
            for rights, paths in ((_READ, read), (_WRITE, write), (_DEVICE, devices)):
                for path in paths:
                    _allow(ruleset, path, rights & _list_rights(version))
            if own_threads:
                _allow(ruleset, Path("/proc/self/task"), _CHANGE & _list_rights(version), keep_open=True)
            kernel.syscall(kernel.LANDLOCK_RESTRICT_SELF, ruleset, 0)
        finally:
            os.close(ruleset)
    except OSError as error:
        raise IsolationViolated(f"the kernel refuses the file rules: {error.strerror}") from None
    return True


def _list_rights(version: int) -> int:
    """Collect the file rights that a kernel of this ABI knows."""
    rights = _MAKE_SYM * 2 - 1
    rights |= _REFER if version >= 2 else 0
    rights |= _TRUNCATE if version >= 3 else 0
    return rights | (_IOCTL_DEV if version >= 5 else 0)


def _create(version: int, *, tcp: bool) -> int:
    # struct landlock_ruleset_attr grew by one field at ABI 4 and one at ABI 6; its size says which fields there are.
    fields = [_list_rights(version)]
    if version >= 4:
        fields.append(0 if tcp else _BIND_TCP_AND_CONNECT_TCP)
    if version >= 6:
        fields.append(_SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS)
    attributes = struct.pack(f"={len(fields)}Q", *fields)
    return kernel.syscall(kernel.LANDLOCK_CREATE_RULESET, attributes, len(attributes), 0)


def _allow(ruleset: int, path: Path, rights: int, *, keep_open: bool = False) -> None:
    """Add a rule. It holds for an inode: `keep_open` is for /proc, which makes a new one once nobody holds the old."""
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= _ON_FILES
        rule = struct.pack("=Qi", rights, descriptor)  # struct landlock_path_beneath_attr, packed
        kernel.syscall(kernel.LANDLOCK_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0)
    finally:
        if not keep_open:
            os.close(descriptor)
