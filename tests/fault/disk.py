"""A model of a disk that loses power: what a traced process wrote, cut off anywhere, unsynced writes lost or not.

Only what the trace shows to be synced is sure to be there: the content of a file up to its last fsync, a name up to the
last fsync of its directory. Of the rest a state may have any part. A write may be torn between two blocks of 512 bytes.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

BLOCK = 512
TRACED = "trace=write,pwrite64,fsync,fdatasync,ftruncate,rename,unlink,openat"
_CALL = re.compile(r"(\w+)\((.*)\) = (-?\d+)(<.*>)?$")

Choose = Callable[[], bool]


@dataclass
class File:
    """Content as of the start, and what was written since: (offset, data), or (size, None) where it was cut."""

    start: bytes = b""
    writes: list[tuple[int, bytes | None]] = field(default_factory=list)
    synced: int = 0

    def content(self, choose: Choose) -> bytes:
        """The content with every synced write and those of the others that are chosen."""
        data = bytearray(self.start)
        for number, (at, written) in enumerate(self.writes):
            if written is None:
                if number < self.synced or choose():
                    del data[at:]
                    data.extend(bytes(at - len(data)))
                continue
            for start in range(0, len(written), BLOCK):
                if number < self.synced or choose():
                    piece = written[start : start + BLOCK]
                    data.extend(bytes(max(0, at + start + len(piece) - len(data))))
                    data[at + start : at + start + len(piece)] = piece
        return bytes(data)


@dataclass
class Change:
    """A change of names: those taken away, one that is given to a file, and the directories it is in."""

    gone: Path
    name: Path | None
    file: File | None
    synced: bool = False


class Disk:
    """The files below one directory, as the traced process left them so far."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._start = {path: File(path.read_bytes()) for path in root.rglob("*") if path.is_file()}
        self._now = dict(self._start)
        self._changes: list[Change] = []

    def state(self, choose: Choose) -> dict[Path, bytes]:
        """Content by path relative to the root, if the power failed now; `choose` decides what unsynced parts last."""
        names = dict(self._start)
        for change in self._changes:
            if change.synced or choose():
                names.pop(change.gone, None)
                if change.name is not None and change.file is not None:
                    names[change.name] = change.file
        return {path.relative_to(self._root): file.content(choose) for path, file in names.items()}

    def apply(self, call: str, arguments: list[str]) -> None:
        """One successful system call; paths are absolute."""
        path = Path(arguments[0])
        if call in ("write", "pwrite64") and path in self._now:
            file, data = self._now[path], arguments[1].encode("latin-1")
            at = int(arguments[3]) if call == "pwrite64" else len(file.content(lambda: True))
            file.writes.append((at, data))
        elif call == "ftruncate" and path in self._now:
            self._now[path].writes.append((int(arguments[1]), None))
        elif call in ("fsync", "fdatasync") and path in self._now:
            self._now[path].synced = len(self._now[path].writes)
        elif call in ("fsync", "fdatasync"):  # of a directory
            for change in self._changes:
                change.synced |= path in (change.gone.parent, change.name and change.name.parent)
        elif call == "rename":
            file, target = self._now.pop(path), Path(arguments[1])
            self._now[target] = file
            self._changes.append(Change(path, target, file))
        elif call == "unlink" and self._now.pop(path, None) is not None:
            self._changes.append(Change(path, None, None))
        elif call == "openat":
            self._opened(path, arguments[1])

    def _opened(self, path: Path, flags: str) -> None:
        if path not in self._now and "O_CREAT" in flags:
            self._now[path] = File()
            self._changes.append(Change(path, path, self._now[path]))
        elif path in self._now and "O_TRUNC" in flags:
            self._now[path].writes.append((0, None))


def calls(trace: str, root: Path) -> Iterator[tuple[str, list[str]]]:
    """Successful system calls below `root`, and writes to standard output as ("say", [text]), in order.

    The trace is that of `strace -y -xx -s LARGE`.
    """
    for line in trace.splitlines():
        match = _CALL.match(line)
        if match is None or int(match[3]) < 0:
            continue
        call, inside = match[1], match[2]
        parts = inside.split(", ")
        if call == "write" and parts[0].startswith("1<"):
            yield "say", [_decoded(parts[1])]
            continue
        if call == "openat":
            parts = [parts[1], parts[2]]
        decoded = [_decoded(part) for part in parts]
        if decoded[0].startswith(str(root)) and not decoded[0].endswith("-shm"):  # shared memory, made anew on opening
            yield call, decoded


def _decoded(part: str) -> str:
    """The path of a descriptor, a string, or the argument as it is; one character for each byte."""
    found = re.search(r"(?:\\x[0-9a-f]{2})+", part)
    return bytes.fromhex(found[0].replace("\\x", "")).decode("latin-1") if found else part


def chooser(generator: random.Random, chance: float) -> Choose:
    """Chooses with this chance."""
    return lambda: generator.random() < chance
