"""What a process and its children did to files, as steps, from the output of strace.

The steps are few: `say` (text on standard output of the first process), `open` (that makes or empties a file), `write`,
`cut`, `grow`, `sync began`, `sync`, `rename`, `link`, `unlink`, `mkdir`, `rmdir`. A call on one of the files that would
change it in another way is an error, so that nothing is left out unnoticed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

_CALLS = "write,writev,pwrite64,pwritev,pwritev2,fsync,fdatasync,ftruncate,truncate,fallocate,copy_file_range,sendfile"
_CALLS += ",splice,lseek,rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,mkdir,mkdirat,rmdir"
_CALLS += ",open,openat,creat"
STRACE = ("strace", "-f", "--seccomp-bpf", "-y", "-xx", "-s", "3000000", "-e", f"trace={_CALLS}", "-e", "signal=none")

_LINE = re.compile(r"(?:(\d+) +)?(.*)$")
_CALL = re.compile(r"(\w+)\((.*)\) += (\d+)((?:<.*>)?)$")
_RESUMED = re.compile(r"<\.\.\. \w+ resumed>")
_TEXT = re.compile(r"(?:\\x[0-9a-f]{2})+")
_UNFINISHED = " <unfinished ...>"
_SYNC = ("fsync", "fdatasync")
_WRITES = ("write", "writev", "pwrite64", "pwritev", "pwritev2")
# Shared memory, locks and sockets, all made anew, and the words of a server.
_PASSING = re.compile(r"-shm$|/postmaster\.pid$|/\.s\.PGSQL\.\d+(\.lock)?$|/log$")


@dataclass(frozen=True)
class Step:
    """One thing that was done to a file, or said.

    Attributes:
      kind: see above.
      path: the file; that which gets another name, where there are two.
      process: who did it.
      text: what was written or said, one character for each byte, or how it was opened.
      at: where it was written, None for the end; where the next write is; the size that it was cut or grown to.
      target: the new name.
    """

    kind: str
    path: Path
    process: int
    text: str = ""
    at: int | None = None
    target: Path | None = None


def passing(path: Path) -> bool:
    """Whether a file is of no use after the power failed."""
    return bool(_PASSING.search(str(path)))


def steps(trace: str, root: Path, directory: Path) -> Iterator[Step]:
    """What was done below `root`, in the order in which the calls ended, and the begin of every sync.

    Args:
      trace: written by `STRACE`.
      root: absolute.
      directory: what relative names are relative to where the trace does not say it.
    """
    begun: dict[int, str] = {}
    speaker: int | None = None
    positions: dict[tuple[int, str], int | None] = {}
    for line in trace.splitlines():
        number, call = _LINE.match(line).groups()  # type: ignore[union-attr]
        process = int(number or 0)
        speaker = process if speaker is None else speaker
        if call.endswith(_UNFINISHED):
            begun[process] = call.removesuffix(_UNFINISHED)
            call = begun[process] + ") = 0" if begun[process].startswith(_SYNC) else ""
            kinds: tuple[str, ...] = ("sync began",)
        else:
            resumed = _RESUMED.match(call)
            call = begun.pop(process) + call[resumed.end() :] if resumed else call
            kinds = ("sync",) if resumed else ("sync began", "sync")
        match = _CALL.match(call)
        if match is None:
            continue
        if match[1] == "write" and process == speaker and match[2].startswith("1<"):
            yield Step("say", root, process, _decoded(match[2].partition(", ")[2]))
            continue
        for step in _steps(match, directory, process, kinds):
            step = _placed(step, match, positions)
            useless = step.kind == "seek" or (step.kind == "open" and not re.search("O_CREAT|O_TRUNC", step.text))
            if not useless and root in (step.path, *step.path.parents) and not passing(step.path):
                yield step


def _placed(step: Step, match: re.Match[str], positions: dict[tuple[int, str], int | None]) -> Step:
    """The same step, with the place of a write that goes to where its descriptor is; nothing reads from that too."""
    opened = step.kind == "open"
    descriptor = step.process, match[3] if opened else match[2].partition("<")[0]
    if opened or step.kind == "seek":
        positions[descriptor] = None if "O_APPEND" in step.text else step.at or 0
    elif match[1] in ("write", "writev"):
        at = positions.get(descriptor)
        positions[descriptor] = None if at is None else at + len(step.text)
        return replace(step, at=at)
    return step


def _steps(match: re.Match[str], directory: Path, process: int, sync: tuple[str, ...]) -> Iterator[Step]:
    """The steps that one successful call makes; paths may lie anywhere."""
    call, inside, result = match[1], match[2], int(match[3])
    parts = inside.split(", ")
    if parts[0].endswith("(deleted)"):
        return
    if call in ("open", "openat", "creat"):
        assert not re.search(r"O_D?SYNC|O_TMPFILE", inside), "this way of writing is not modelled"
        made = [flag for flag in ("O_CREAT", "O_TRUNC", "O_APPEND") if flag in inside]
        yield Step("open", Path(_decoded(match[4])), process, " ".join(made))
    elif call in _SYNC:
        yield from (Step(kind, _path(parts[0], directory), process) for kind in sync)
    elif call in _WRITES:
        text = "".join(_decoded(found) for found in _TEXT.findall(inside.partition(", ")[2]))
        assert len(text) >= result, "strace left out a part of what was written"
        at = {"pwrite64": 3, "pwritev": -1, "pwritev2": -2}.get(call)
        yield Step("write", _path(parts[0], directory), process, text[:result], None if at is None else int(parts[at]))
    elif call == "lseek":
        yield Step("seek", _path(parts[0], directory), process, at=result)
    elif call in ("ftruncate", "truncate"):
        yield Step("cut", _path(parts[0], directory), process, at=int(parts[1]))
    elif call == "fallocate":
        assert parts[1] == "0", "this way of allocating is not modelled"
        yield Step("grow", _path(parts[0], directory), process, at=int(parts[2]) + int(parts[3]))
    else:
        yield _of_names(call, parts, directory, process)


def _of_names(call: str, parts: list[str], directory: Path, process: int) -> Step:
    """A step that changes names."""
    if call in ("unlinkat", "mkdirat"):
        path = _path(parts[0], directory) / _decoded(parts[1])
        kind = "rmdir" if "AT_REMOVEDIR" in parts[-1] else call.removesuffix("at")
        return Step(kind, path, process)
    if call in ("renameat", "renameat2", "linkat"):
        source, target = (_path(parts[i], directory) / _decoded(parts[i + 1]) for i in (0, 2))
        return Step(call.partition("at")[0], source, process, target=target)
    path = _path(parts[0], directory)
    target = _path(parts[1], directory) if call in ("rename", "link") else None
    known = call in ("rename", "link", "unlink", "mkdir", "rmdir")
    return Step(call if known else f"{call}, which is not modelled", path, process, target=target)


def _path(part: str, directory: Path) -> Path:
    """The file of a name, or of a descriptor, which is a relative path where it is none."""
    return directory / _decoded(part) if part.startswith('"') else Path(_decoded(part))


def _decoded(part: str) -> str:
    """The path of a descriptor, or a string; one character for each byte."""
    found = _TEXT.search(part)
    return bytes.fromhex(found[0].replace("\\x", "")).decode("latin-1") if found else ""
