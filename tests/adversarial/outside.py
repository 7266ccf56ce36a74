"""What lies outside of a sandbox: files, things known by a number, a process; and whether anything of it changed."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import shutil
import signal
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from appliance.isolation import calls, kernel

NUMBERS = calls.numbers(kernel.machine())
_FILES = ("outside/file", "outside/other", "outside/full/inner", "outside/link", "readable/file", "readable/program")
_KEYS = 1024  # an ordinary user may have 200
_STATUS = ("State", "TracerPid", "Uid", "Gid", "Groups", "CapEff", "Seccomp", "Cpus_allowed", "Mems_allowed", "ShdPnd")


def call(name: str, *arguments: Any) -> int:
    """Make a system call; raises OSError."""
    return kernel.syscall(NUMBERS[name], *arguments)


class World:
    """Files and directories that belong to `user`, a System V object of each kind, a queue, a key, and a process.

    Attributes:
      root: holds `outside`, `readable` (which the sandbox may read) and `inside` (which it may write).
      key: number by which the System V objects are known; the next one is free.
      ids: of shared memory, semaphore and messages.
      pid: a process of the same user, with a group of its own, that sleeps.
      memory: where its secret lies, in it and in whoever forks from here.
      name: of the message queue, of the key in the user's keyring, and of the extended attribute.
    """

    def __init__(self, root: Path, user: int) -> None:
        self.root, self.user = root, user
        self.key, self.name = int.from_bytes(os.urandom(3), "little") << 4, f"walk{os.urandom(6).hex()}"
        self._secret = ctypes.create_string_buffer(b"the secret of another process")
        self.memory = ctypes.addressof(self._secret)
        self.ids: dict[str, int] = {}
        self.pid = self.serial = 0

    def path(self, name: str) -> bytes:
        return bytes(self.root / name)

    def build(self) -> None:
        """Make everything; what was there before is removed."""
        self.remove()
        for directory in ("outside/full", "outside/empty", "readable", "inside"):
            (self.root / directory).mkdir(parents=True)
        for name in _FILES:
            path = self.root / name
            path.symlink_to("file") if name.endswith("link") else path.write_text(f"#!/bin/sh\necho > {self.marker}\n")
        for path in (self.root, *self.root.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.name == "program" else 0o644)
                with contextlib.suppress(OSError):
                    os.setxattr(path, "user.walk", b"before")
            os.chown(path, self.user, self.user, follow_symlinks=False)
        self.serial = _as(self.user, self._make_objects)
        self.ids = {
            "memory": call("shmget", self.key, 4096, 0),
            "semaphore": call("semget", self.key, 1, 0),
            "messages": call("msgget", self.key, 0),
        }
        self.pid = self._start_process()

    @property
    def marker(self) -> Path:
        """What the program in `readable` makes when it is run."""
        return self.root / "outside" / "marker"

    def remove(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0
        for kind in ("shm", "sem", "msg"):
            for row in self._rows(kind):
                call(f"{kind}ctl", int(row.split()[1]), 0, *((0,) if kind == "sem" else (None,)))
        for suffix in ("", "2"):
            with contextlib.suppress(OSError):
                call("mq_unlink", (self.name + suffix).encode())
        if self.serial:
            _as(self.user, self._forget_keys)
        shutil.rmtree(self.root, ignore_errors=True)

    def _make_objects(self) -> int:
        for name, arguments in (("shmget", (4096,)), ("semget", (1,)), ("msgget", ())):
            call(name, self.key, *arguments, 0o1600)
        call("msgsnd", call("msgget", self.key, 0), struct.pack("@q8s", 1, b"before"), 8, 0)
        queue = call("mq_open", self.name.encode(), os.O_CREAT | os.O_RDWR, 0o600, None)
        call("mq_timedsend", queue, b"before", 6, 0, None)
        os.close(queue)
        call("add_key", b"user", self.name.encode(), b"before", 6, -4)
        return int(self._keys()[0].split()[0], 16)

    def _forget_keys(self) -> int:
        for row in self._keys():
            with contextlib.suppress(OSError):
                call("keyctl", 21, int(row.split()[0], 16))
        return 0

    def _keys(self) -> list[str]:
        """List our keys in the keyring of who asks: what was taken out of it is listed for some time after that."""
        held = ctypes.create_string_buffer(4 * _KEYS)
        size = call("keyctl", 11, -4, held, len(held))
        linked = {serial for (serial,) in struct.iter_unpack("@i", held.raw[: min(size, len(held))])}
        rows = [row for row in Path("/proc/keys").read_text().splitlines() if self.name in row]
        rows = [row for row in rows if int(row.split()[0], 16) in linked]
        return sorted(row for row in rows if not {*row.split()[1]} & {"i", "R", "D"})  # such are on their way out

    def _rows(self, kind: str) -> list[str]:
        rows = Path(f"/proc/sysvipc/{kind}").read_text().splitlines()[1:]
        return [row for row in rows if int(row.split()[0]) in (self.key, self.key + 1)]

    def _start_process(self) -> int:
        ready, told = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.setpgid(0, 0)
            become(self.user)
            os.write(told, b"!")
            while True:
                signal.pause()
        os.read(ready, 1)
        os.close(ready)
        os.close(told)
        return pid

    # --- what it looks like -----------------------------------------------------------------------------------------

    def look(self) -> dict[str, Any]:
        """Describe everything that something could have changed."""
        seen: dict[str, Any] = {"names": sorted(str(path) for path in (self.root / "outside").rglob("*"))}
        seen["names"] += sorted(str(path) for path in (self.root / "readable").rglob("*"))
        for name in ("outside", "outside/full", "outside/empty", "readable", *_FILES):
            seen[name] = self._look_at(self.root / name)
        seen |= {kind: self._rows(kind) for kind in ("shm", "sem", "msg")}
        seen["queue"] = [self._queue(self.name), self._queue(self.name + "2")]
        seen["keys"] = _as(self.user, self._digest_of_keys)
        seen["process"] = self._look_at_process()
        seen["machine"] = [os.uname().nodename, _mounts(self.root), Path("/proc/swaps").read_text()]
        return seen

    def _look_at(self, path: Path) -> list[Any]:
        try:
            found = os.lstat(path)
            content = path.read_bytes() if path.is_file() else b""
            with contextlib.suppress(OSError):
                return [*_facts(found), content, [(n, os.getxattr(path, n)) for n in sorted(os.listxattr(path))]]
            return [*_facts(found), content]
        except OSError as error:
            return [error.errno]

    def _queue(self, name: str) -> list[int]:
        try:
            descriptor = call("mq_open", name.encode(), os.O_RDONLY | os.O_NONBLOCK, 0, None)
        except OSError as error:
            return [error.errno or 0]
        try:
            attributes = ctypes.create_string_buffer(64)
            call("mq_getsetattr", descriptor, None, attributes)
            return [*struct.unpack("@8q", attributes.raw), os.fstat(descriptor).st_mode]
        finally:
            os.close(descriptor)

    def _digest_of_keys(self) -> int:
        rows = [row.split() for row in self._keys()]
        shown = []
        for row in rows:
            value, serial = ctypes.create_string_buffer(64), int(row[0], 16)
            with contextlib.suppress(OSError):
                call("keyctl", 11, serial, value, 64)
            shown.append([row[0], row[1], row[3:], value.raw.hex()])  # row[2] counts its users, us among them
        return int.from_bytes(hashlib.sha256(json.dumps(shown).encode()).digest()[:7], "little")

    def _look_at_process(self) -> list[Any]:
        try:
            lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
            status = [line.replace("R (running)", "S (sleeping)") for line in lines if line.split(":")[0] in _STATUS]
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
            with open(f"/proc/{self.pid}/mem", "rb") as memory:
                memory.seek(self.memory)
                secret = memory.read(30)
            limits = Path(f"/proc/{self.pid}/limits").read_text()
            return [status, fields[2:4], fields[15:17], fields[37:39], limits, secret, call("ioprio_get", 1, self.pid)]
        except OSError as error:
            return [error.errno]


def _mounts(root: Path) -> list[str]:
    """List what is mounted, but for what other tests mount meanwhile: namespaces, and below the temporary directory."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return [line for line in lines if not _of_others(Path(line.split()[1]), root)]


def _of_others(place: Path, root: Path) -> bool:
    beside = place.is_relative_to(tempfile.gettempdir()) and not place.is_relative_to(root)
    return beside or place.is_relative_to("/run/netns")


def _facts(found: os.stat_result) -> list[int]:
    """List what of a file can be changed, its times but for that of reading."""
    return [
        found.st_mode,
        found.st_uid,
        found.st_gid,
        found.st_nlink,
        found.st_size,
        found.st_mtime_ns,
        found.st_ctime_ns,
    ]


def become(user: int) -> None:
    """Become another user for good, as a program of his is that was started."""
    if user != os.geteuid():
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
        kernel.prctl(kernel.PR_SET_DUMPABLE, 1)


def _as(user: int, work: Callable[[], int]) -> int:
    """Run `work` in a child that is `user`; what it returns."""
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            become(user)
            os.write(told, str(work()).encode())
        finally:
            os._exit(0)
    os.close(told)
    with os.fdopen(ready) as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    return int(text)
