"""A model of a disk that loses power: what traced processes wrote, cut off anywhere, unsynced writes lost or not.

Only what the trace shows to be synced is sure to be there: the content of a file up to its last fsync, a name up to the
last fsync of its directory. Of the rest a state may have any part. A write may be torn between two blocks of 512 bytes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.fault.trace import Step, passing

BLOCK = 512

Choose = Callable[[], bool]


@dataclass
class File:
    """Content as of the start, and what was written since: (offset, data), or (size, None) where it was cut."""

    start: bytes = b""
    writes: list[tuple[int, bytes | None]] = field(default_factory=list)
    synced: int = 0

    def content(self, choose: Choose) -> bytes:
        """The content with every synced write and those of the others that are chosen."""
        if not self.writes:
            return self.start
        data = bytearray(self.start)
        for number, (at, written) in enumerate(self.writes):
            if written is None:
                if number < self.synced or choose():
                    del data[at:]
                    data.extend(bytes(at - len(data)))
                continue
            size = len(written) if number < self.synced else BLOCK
            for start in range(0, len(written), size):
                if number < self.synced or choose():
                    piece = written[start : start + size]
                    data.extend(bytes(max(0, at + start + len(piece) - len(data))))
                    data[at + start : at + start + len(piece)] = piece
        return bytes(data)

    @property
    def size(self) -> int:
        """Its size, nothing lost."""
        size = len(self.start)
        for at, written in self.writes:
            size = at if written is None else max(size, at + len(written))
        return size


@dataclass(eq=False)
class Directory:
    """Names as of the start, and as they are if nothing is lost."""

    start: dict[str, Node] = field(default_factory=dict)
    now: dict[str, Node] = field(default_factory=dict)


Node = File | Directory


@dataclass
class Change:
    """Names that change at once: in this directory this name is now that of ..., or is gone."""

    names: list[tuple[Directory, str, Node | None]]
    synced: bool = False


class Disk:
    """The files and directories below one directory, as the traced processes left them so far."""

    def __init__(self, root: Path) -> None:
        self._path = root
        self._root = _read(root)
        self._changes: list[Change] = []
        self._begun: dict[tuple[int, Path], int] = {}

    def state(self, choose: Choose) -> dict[Path, bytes | None]:
        """Content by path relative to the root, None for a directory, if the power failed now.

        `choose` decides what unsynced parts last. A directory comes before what is in it.
        """
        changed: dict[Directory, dict[str, Node]] = {}
        for change in self._changes:
            if change.synced or choose():
                for directory, name, node in change.names:
                    names = changed.setdefault(directory, dict(directory.start))
                    names.pop(name, None)
                    if node is not None:
                        names[name] = node
        return dict(_listed(self._root, Path(), changed, choose))

    def apply(self, step: Step) -> None:
        """Do what was done. Raises `KeyError` for a file that there is not."""
        if step.kind == "open":
            self._open(step.path, step.text)
        elif step.kind == "write":
            file, data = self._file(step.path), step.text.encode("latin-1")
            file.writes.append((file.size if step.at is None else step.at, data))
        elif step.kind in ("cut", "grow"):
            file, size = self._file(step.path), step.at or 0
            file.writes.append((max(size, file.size) if step.kind == "grow" else size, None))
        elif step.kind == "sync began":
            node = self._node(step.path)
            self._begun[step.process, step.path] = len(node.writes if isinstance(node, File) else self._changes)
        elif step.kind == "sync":
            self._sync(self._node(step.path), self._begun.pop((step.process, step.path)))
        else:
            self._change(step)

    def _node(self, path: Path) -> Node:
        node: Node = self._root
        for name in path.relative_to(self._path).parts:
            assert isinstance(node, Directory)
            node = node.now[name]
        return node

    def _file(self, path: Path) -> File:
        node = self._node(path)
        assert isinstance(node, File)
        return node

    def _parent(self, path: Path) -> Directory:
        node = self._node(path.parent)
        assert isinstance(node, Directory)
        return node

    def _open(self, path: Path, how: str) -> None:
        if "O_CREAT" in how and path.name not in self._parent(path).now:
            self._rename((self._parent(path), path.name, File()))
        elif "O_TRUNC" in how:
            self._file(path).writes.append((0, None))

    def _sync(self, node: Node, before: int) -> None:
        """What was there when it began is synced."""
        if isinstance(node, File):
            node.synced = max(node.synced, before)
            return
        for change in self._changes[:before]:
            change.synced |= any(directory is node for directory, _, _ in change.names)

    def _change(self, step: Step) -> None:
        place = self._parent(step.path), step.path.name
        if step.kind == "mkdir":
            self._rename((*place, Directory()))
        elif step.kind in ("unlink", "rmdir"):
            self._node(step.path)
            self._rename((*place, None))
        elif step.kind in ("rename", "link") and step.target is not None:
            given = self._parent(step.target), step.target.name, self._node(step.path)
            self._rename(*([(*place, None)] if step.kind == "rename" else []), given)
        else:
            raise AssertionError(step.kind)

    def _rename(self, *names: tuple[Directory, str, Node | None]) -> None:
        for directory, name, node in names:
            directory.now.pop(name, None)
            if node is not None:
                directory.now[name] = node
        self._changes.append(Change(list(names)))


def _read(path: Path) -> Directory:
    start: dict[str, Node] = {}
    for found in path.iterdir():
        if found.is_dir():
            start[found.name] = _read(found)
        elif found.is_file() and not passing(found):
            start[found.name] = File(found.read_bytes())
    return Directory(start, dict(start))


def _listed(
    directory: Directory, path: Path, changed: dict[Directory, dict[str, Node]], choose: Choose
) -> Iterator[tuple[Path, bytes | None]]:
    for name, node in changed.get(directory, directory.start).items():
        if isinstance(node, File):
            yield path / name, node.content(choose)
        else:
            yield path / name, None
            yield from _listed(node, path / name, changed, choose)


def chooser(generator: random.Random, chance: float) -> Choose:
    """Chooses with this chance."""
    return lambda: generator.random() < chance
