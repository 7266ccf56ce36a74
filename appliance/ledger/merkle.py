"""RFC 6962 Merkle trees: hashes, a builder that emits C2SP tiles, inclusion and consistency proofs.

Nothing here does I/O. A proof is computed from `Node`, a function that returns the hash of a complete subtree: level
l, index i covers the leaves [i * 2^l, (i + 1) * 2^l). All hashes are SHA-256, 32 bytes.

A tree of three leaves is the tree of the first two, and the third beside it:

    >>> a, b, c = map(leaf_hash, (b"a", b"b", b"c"))
    >>> root = fold(extend([], 0, [a, b, c]))
    >>> root == node_hash(node_hash(a, b), c)
    True

What b's audit path holds is what whoever has b and the root lacks:

    >>> root_from_inclusion(1, 3, b, [a, c]) == root
    True
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from typing import NamedTuple

from appliance.errors import IntegrityError

TILE = 256  # hashes in a full tile (C2SP tlog-tiles)
EMPTY_ROOT = sha256(b"").digest()

Node = Callable[[int, int], bytes]


class Tile(NamedTuple):
    """A full tile: 256 consecutive hashes of one tile level (level 8 * `level` of the tree) and the root over them."""

    level: int
    n: int
    root: bytes
    hashes: bytes


def leaf_hash(leaf: bytes) -> bytes:
    """Hash of a leaf: SHA-256(0x00 || leaf). RFC 6962, section 2.1."""
    return sha256(b"\x00" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash of an interior node: SHA-256(0x01 || left || right). RFC 6962, section 2.1."""
    return sha256(b"\x01" + left + right).digest()


def subtree_root(hashes: Sequence[bytes]) -> bytes:
    """Compute the root over hashes whose number is a power of two."""
    row = hashes
    while len(row) > 1:
        pairs = iter(row)
        row = [sha256(b"\x01" + left + right).digest() for left, right in zip(pairs, pairs, strict=True)]
    return row[0]


def fold(frontier: Sequence[bytes]) -> bytes:
    """Compute the root of the tree whose complete subtrees, largest first, have these roots."""
    if not frontier:
        return EMPTY_ROOT
    root = frontier[-1]
    for left in reversed(frontier[:-1]):
        root = node_hash(left, root)
    return root


def extend(frontier: Sequence[bytes], size: int, leaf_hashes: Iterable[bytes]) -> list[bytes]:
    """Append leaves to a tree of `size` leaves: its new frontier; the argument is left alone."""
    result = list(frontier)
    for index, leaf in enumerate(leaf_hashes, start=size):
        digest, rest = leaf, index
        while rest & 1:
            digest = node_hash(result.pop(), digest)
            rest >>= 1
        result.append(digest)
    return result


def frontier_at(size: int, node: Node) -> list[bytes]:
    """List the roots of the complete subtrees of a tree of `size` leaves, largest first."""
    result = []
    start = 0
    for level in reversed(range(size.bit_length())):
        if size >> level & 1:
            result.append(node(level, start >> level))
            start += 1 << level
    return result


class Builder:
    """A tree built leaf by leaf in memory that does not grow: at most 255 hashes are held on each tile level."""

    def __init__(self) -> None:
        self.size = 0
        self._pending: list[list[bytes]] = [[]]

    def push(self, digest: bytes) -> Sequence[Tile]:
        """Append one leaf hash; returns the tiles that it fills, lowest level first."""
        self.size += 1
        row = self._pending[0]
        row.append(digest)
        return () if len(row) < TILE else self._fill()

    def _fill(self) -> list[Tile]:
        tiles: list[Tile] = []
        for level in range(len(self._pending)):
            row = self._pending[level]
            if len(row) < TILE:
                break
            tiles.append(Tile(level, (self.size >> 8 * (level + 1)) - 1, subtree_root(row), b"".join(row)))
            self._pending[level] = []
            if level + 1 == len(self._pending):
                self._pending.append([])
            self._pending[level + 1].append(tiles[-1].root)
        return tiles

    def frontier(self) -> list[bytes]:
        """List the roots of the complete subtrees, largest first."""
        result = []
        for row in reversed(self._pending):
            start = 0
            for bit in reversed(range(len(row).bit_length())):
                if len(row) >> bit & 1:
                    result.append(subtree_root(row[start : start + (1 << bit)]))
                    start += 1 << bit
        return result

    def partial_tiles(self) -> Iterator[tuple[int, int, bytes]]:
        """List the tiles that are not full yet, as (level, n, hashes)."""
        for level, row in enumerate(self._pending):
            if row:
                yield level, self.size >> 8 * (level + 1), b"".join(row)

    def root(self) -> bytes:
        """Compute the root of the tree so far."""
        return fold(self.frontier())


def _split(length: int) -> int:
    """Find the largest power of two smaller than `length` (RFC 6962's k)."""
    return 1 << (length - 1).bit_length() - 1


def _range_root(start: int, end: int, node: Node) -> bytes:
    length = end - start
    if length & (length - 1) == 0:
        level = length.bit_length() - 1
        return node(level, start >> level)
    middle = start + _split(length)
    return node_hash(_range_root(start, middle, node), _range_root(middle, end, node))


def inclusion_path(index: int, size: int, node: Node) -> list[bytes]:
    """Audit path of leaf `index` in the tree of `size` leaves, sibling of the leaf first. RFC 6962, section 2.1.1."""
    path = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            path.append((middle, end))
            end = middle
        else:
            path.append((start, middle))
            start = middle
    return [_range_root(a, b, node) for a, b in reversed(path)]


def root_from_inclusion(index: int, size: int, digest: bytes, path: Sequence[bytes]) -> bytes:
    """Follow the audit path to the root it leads to. Raises `IntegrityError` when the path has the wrong length.

    The algorithm is RFC 9162, section 2.1.3.2.
    """
    if not 0 <= index < size:
        raise IntegrityError("an inclusion proof is for an entry outside the tree")
    fn, sn = index, size - 1
    for sibling in path:
        if sn == 0:
            raise IntegrityError("an inclusion proof is too long")
        if fn & 1 or fn == sn:
            digest = node_hash(sibling, digest)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            digest = node_hash(digest, sibling)
        fn, sn = fn >> 1, sn >> 1
    if sn:
        raise IntegrityError("an inclusion proof is too short")
    return digest


def consistency_path(old: int, new: int, node: Node) -> list[bytes]:
    """Prove that the tree of `old` leaves is a prefix of the tree of `new` leaves. RFC 6962, section 2.1.2."""
    path: list[tuple[int, int]] = []
    start, end, whole = 0, new, True
    while old != end:
        middle = start + _split(end - start)
        if old <= middle:
            path.append((middle, end))
            end = middle
        else:
            path.append((start, middle))
            start, whole = middle, False
    if not whole:
        path.append((start, end))
    return [_range_root(a, b, node) for a, b in reversed(path)]


def check_consistency(old: int, new: int, old_root: bytes, new_root: bytes, path: Sequence[bytes]) -> None:
    """Check a consistency proof for 0 < old <= new. Raises `IntegrityError` unless it holds.

    The algorithm is RFC 9162, section 2.1.4.2.
    """
    if not 0 < old <= new:
        raise IntegrityError("a consistency proof is for impossible sizes")
    if old == new:
        roots = (old_root, old_root) if not path else (b"", b"")
    else:
        hashes = list(path) if old & (old - 1) else [old_root, *path]
        roots = _roots_from_consistency(old, new, hashes)
    if roots != (old_root, new_root):
        raise IntegrityError("a tree head is not a continuation of the one before it")


def _roots_from_consistency(old: int, new: int, hashes: Sequence[bytes]) -> tuple[bytes, bytes]:
    """Compute the old and new root that the hashes lead to; empty ones when their number is wrong."""
    fn, sn = old - 1, new - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    if not hashes:
        return b"", b""
    first = second = hashes[0]
    for sibling in hashes[1:]:
        if sn == 0:
            return b"", b""
        if fn & 1 or fn == sn:
            first, second = node_hash(sibling, first), node_hash(sibling, second)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            second = node_hash(second, sibling)
        fn, sn = fn >> 1, sn >> 1
    return (first, second) if sn == 0 else (b"", b"")
