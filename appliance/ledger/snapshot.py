"""A read-only copy of the log for auditors: leaves, tiles, the signed tree head, keys. No bodies, no business rows.

The layout is that of c2sp.org/tlog-tiles, so that any tool for such logs reads it: `checkpoint`, `tile/LEVEL/N` with
256 hashes, `tile/entries/N` with 256 leaves (each after its length in two bytes), a last partial one as `N.p/WIDTH`.
Beside it `keys.txt`, one verifier key a line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from sqlalchemy import Connection

from appliance.errors import IntegrityError, UsageError
from appliance.files import staged_directory
from appliance.ledger import merkle
from appliance.ledger.database import stream
from appliance.ledger.heads import TreeHead


def write_snapshot(
    connection: Connection, head: TreeHead, cosignatures: Sequence[str], keys: Sequence[str], directory: Path
) -> int:
    """Write the log up to `head` into the new directory, whole or not at all; returns the number of files.

    Raises:
      UsageError: the directory exists.
      IntegrityError: the entries do not give the signed root.
      WillNotFit: the disk is full or fails.
    """
    if directory.exists():
        raise UsageError(f"{directory} exists", hint="name a directory that is new")
    with staged_directory(directory, 0o777) as partial:
        return _write(connection, head, cosignatures, keys, partial)


def tile_path(n: int) -> str:
    """Name the path of tile number `n`: groups of three digits, all but the last with an x, such as x001/x234/067."""
    groups = [f"{n % 1000:03d}"]
    while n := n // 1000:
        groups.append(f"x{n % 1000:03d}")
    return "/".join(reversed(groups))


def _write(
    connection: Connection, head: TreeHead, cosignatures: Sequence[str], keys: Sequence[str], directory: Path
) -> int:
    count = 0
    for name, data in _files(connection, head):
        _put(directory / name, data)
        count += 1
    note = head.note + "".join(f"{line}\n" for line in cosignatures)
    _put(directory / "checkpoint", note.encode())
    _put(directory / "keys.txt", "".join(f"{key}\n" for key in keys).encode())
    return count + 2


def _files(connection: Connection, head: TreeHead) -> Iterator[tuple[str, bytes]]:
    builder, bundle = merkle.Builder(), bytearray()
    rows = stream(connection, "SELECT leaf FROM entry WHERE idx < ? ORDER BY idx", head.size)
    for index, (leaf,) in enumerate(rows):
        bundle += len(leaf).to_bytes(2, "big") + leaf
        for tile in builder.push(merkle.leaf_hash(leaf)):
            yield f"tile/{tile.level}/{tile_path(tile.n)}", tile.hashes
        if index % merkle.TILE == merkle.TILE - 1:
            yield f"tile/entries/{tile_path(index // merkle.TILE)}", bytes(bundle)
            bundle.clear()
    if (builder.size, builder.root()) != (head.size, head.root):
        raise IntegrityError("the entries do not give the tree head that was signed; nothing was exported")
    if bundle:
        n, width = divmod(head.size, merkle.TILE)
        yield f"tile/entries/{tile_path(n)}.p/{width}", bytes(bundle)
    for level, n, hashes in builder.partial_tiles():
        yield f"tile/{level}/{tile_path(n)}.p/{len(hashes) // 32}", hashes


def _put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
