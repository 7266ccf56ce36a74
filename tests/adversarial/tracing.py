"""What any process wrote, and the search for one secret in it: as text or encoded, in pieces or compressed.

`traced` runs a command under strace with all its descendants. `streams` is what they wrote to files (deleted ones too),
sockets, pipes and terminals, `unseen` what they may have written past the trace, `leaks` every place and form in which
the secret stands. What the search finds is itself under test, in test_leaks.py.
"""

from __future__ import annotations

import base64
import bz2
import contextlib
import lzma
import os
import re
import shutil
import sqlite3
import struct
import subprocess
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

SECRET = "wombat-5527-kathmandu"  # in every record that is ingested, and nowhere else
ROOT = Path(__file__).parents[2]
CALLS = (
    "write,pwrite64,writev,pwritev,pwritev2,sendto,sendmsg,sendmmsg,sendfile,copy_file_range,splice,vmsplice,"
    "execve,mmap,io_uring_setup"
)
LONGEST = 1 << 24  # bytes of one argument that strace prints


def traced(
    traces: Path, *command: str, environment: dict[str, str] | None = None, text: str = "", cwd: Path = ROOT
) -> None:
    """Run a command, with all its descendants, under strace; returns when the last of them has ended."""
    traces.mkdir(exist_ok=True)
    options = ("-f", "-ff", "-qq", "--seccomp-bpf", "-y", "-xx", "-s", str(LONGEST), "-e", "signal=none")
    strace = ("strace", *options, "-e", f"trace={CALLS}", "-o", str(traces / "trace"))
    done = subprocess.run(
        [*strace, *command],
        env=environment,
        input=text,
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=3000,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


STRINGS = re.compile(rb'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')
ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")


def unescape(text: bytes) -> bytes:
    return ESCAPED.sub(lambda match: bytes([int(match[1], 16)]), text)


def calls(traces: Path) -> Iterator[tuple[Path, bytes, bytes]]:
    """Every traced call: the file of its thread, its name, and its arguments as strace printed them."""
    for path in sorted(traces.iterdir()):
        for line in path.read_bytes().splitlines():
            name, bracket, arguments = line.partition(b"(")
            if bracket:
                yield path, name, arguments


def streams(traces: Path) -> dict[str, bytes]:
    """What each thread wrote to each descriptor, in its order, and the words of every command that was started."""
    parts: dict[str, list[bytes]] = defaultdict(list)
    for path, name, arguments in calls(traces):
        if name in (b"mmap", b"io_uring_setup"):
            continue
        target = "command" if name == b"execve" else unescape(arguments.split(b",", 1)[0]).decode(errors="replace")
        for text, cut in STRINGS.findall(arguments):
            assert not cut, f"{path.name}: a write of more than {LONGEST} bytes was not recorded whole"
            parts[f"{path.name} {name.decode()} {target}"].append(bytes.fromhex(text.replace(b"\\x", b"").decode()))
    return {place: b"".join(pieces) for place, pieces in parts.items()}


def unseen(traces: Path, inputs: Path) -> list[str]:
    """Ways to write that leave no bytes in the trace, and were used: shared mappings, io_uring, copies of the input."""
    found = []
    for path, name, arguments in calls(traces):
        shared = name == b"mmap" and b"PROT_WRITE" in arguments and b"MAP_SHARED" in arguments
        if shared and b"MAP_ANONYMOUS" not in arguments and b"/ledger.db-shm>" not in unescape(arguments):
            found.append(f"{path.name} {unescape(arguments)!r}")
        if name in (b"io_uring_setup", b"vmsplice"):
            found.append(f"{path.name} {name!r}")
        if name in (b"sendfile", b"copy_file_range", b"splice") and bytes(inputs) in unescape(arguments):
            found.append(f"{path.name} {name!r} of the input")
    return found


# --- the search ------------------------------------------------------------------------------------------------------


def forms(token_ids: list[int]) -> dict[str, bytes]:
    """The secret in the encodings that are sought; text is sought in lower case, so these are too where case varies."""
    text = SECRET.encode()
    found = {"text": text, "utf-16-le": SECRET.encode("utf-16-le"), "utf-16-be": SECRET.encode("utf-16-be")}
    found["hex"] = text.hex().encode()
    for shift in range(3):
        padded = bytes(shift) + text
        whole = len(padded) // 3 * 3
        found[f"base64+{shift}"] = base64.b64encode(padded[:whole])[4 if shift else 0 :]
    found["token ids as text"] = ",".join(map(str, token_ids)).encode()
    for size, code in ((16, "h"), (32, "i"), (64, "q")):
        found[f"token ids as int{size}"] = struct.pack(f"<{len(token_ids)}{code}", *token_ids)
    return found


STREAM = rb"\x1f\x8b\x08|\x78[\x01\x5e\x9c\xda]|PK\x03\x04|BZh[1-9]|\xfd7zXZ\x00|\x28\xb5\x2f\xfd"


def inflate(data: bytes) -> Iterator[tuple[str, bytes]]:
    """What every compressed stream in `data` holds, wherever it begins and however early it breaks off."""
    for match in re.finditer(STREAM, data):
        rest, magic = data[match.start() :], match[0]
        with contextlib.suppress(zlib.error, OSError, lzma.LZMAError, EOFError):
            if magic[:1] in (b"\x1f", b"\x78"):
                yield "deflated", zlib.decompressobj(47).decompress(rest, 1 << 24)
            elif magic[:1] == b"P":  # a member of a zip file: raw, behind its header and two names
                begin = 30 + int.from_bytes(rest[26:28], "little") + int.from_bytes(rest[28:30], "little")
                yield "zipped", zlib.decompressobj(-15).decompress(rest[begin:], 1 << 24)
            elif magic[:1] == b"B":
                yield "bzip2", bz2.BZ2Decompressor().decompress(rest, 1 << 24)
            elif magic[:1] == b"\xfd":
                yield "xz", lzma.LZMADecompressor().decompress(rest, 1 << 24)
            elif shutil.which("zstd"):
                done = subprocess.run(["zstd", "-dcq"], input=rest, capture_output=True, check=False)
                yield "zstd", done.stdout


def search(data: bytes, sought: dict[str, bytes], depth: int = 2) -> set[str]:
    """The forms of the secret that are in `data`, also compressed, up to `depth` times."""
    lower, dense = data.lower(), data.translate(None, b" \t\r\n")
    found = {form for form, needle in sought.items() if needle in data or needle in lower or needle in dense}
    if sought["hex"] in dense.lower():
        found.add("hex")
    for kind, inner in inflate(data) if depth else ():
        found |= {f"{kind} {form}" for form in search(inner, sought, depth - 1)}
    return found


def files(place: Path) -> Iterator[Path]:
    """`place` and everything below it; what another program takes away meanwhile is passed by."""
    yield place
    for directory, subdirectories, names in os.walk(place):
        yield from (Path(directory, name) for name in (*subdirectories, *names))


def cells(path: Path) -> bytes:
    """Every value of every table: the file alone may hold a long one in pieces."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        tables = [name for (name,) in database.execute("select name from sqlite_master where type = 'table'")]
        rows = [row for table in tables for row in database.execute(f'select * from "{table}"')]
    values = [value for row in rows for value in row if value is not None]
    return b"\n".join(value if isinstance(value, bytes) else str(value).encode() for value in values)


def leaks(places: Iterable[Path], traces: Path, token_ids: list[int]) -> dict[str, set[str]]:
    """Where the secret is, and in which forms: in what was written, in files that are there, and in their names."""
    sought = forms(token_ids)
    found = {place: search(data, sought) for place, data in streams(traces).items()}
    for path in (path for place in places for path in files(place)):
        found[f"name of {path}"] = search(os.fsencode(path), sought)
        if path.is_file() and not path.is_symlink():
            try:
                data = path.read_bytes()
                values = cells(path) if data.startswith(b"SQLite format 3\0") else b""
            except (FileNotFoundError, sqlite3.OperationalError):
                if path.exists():
                    raise
                continue
            found[str(path)] = search(data, sought)
            found[f"{path} (cells)"] = search(values, sought)
    return {place: kinds for place, kinds in found.items() if kinds}
