"""RFC 6962 trees: known vectors, and every proof of every tree of up to 300 leaves against a naive reference."""

from __future__ import annotations

from functools import cache

import pytest

from appliance.errors import IntegrityError
from appliance.ledger import merkle

INPUTS = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
# Published with the Certificate Transparency reference implementation.
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
INCLUSION_0_8 = [
    "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
    "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
    "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
]
CONSISTENCY_6_8 = [
    "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
    "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
]
LARGEST = 300
LEAVES = [merkle.leaf_hash(str(i).encode()) for i in range(LARGEST)]


@cache
def reference(start: int, end: int) -> bytes:
    """MTH of RFC 6962, section 2.1, word for word."""
    if end == start:
        return merkle.EMPTY_ROOT
    if end - start == 1:
        return LEAVES[start]
    k = 1
    while 2 * k < end - start:
        k *= 2
    return merkle.node_hash(reference(start, start + k), reference(start + k, end))


def node(level: int, index: int) -> bytes:
    return reference(index << level, (index + 1) << level)


def node_of(leaves: list[bytes]) -> merkle.Node:
    return lambda level, index: merkle.subtree_root(leaves[index << level : (index + 1) << level])


def test_known_roots_and_paths() -> None:
    leaves = [merkle.leaf_hash(data) for data in INPUTS]
    for size, root in enumerate(ROOTS):
        assert merkle.fold(merkle.extend([], 0, leaves[:size])).hex() == root
    path = merkle.inclusion_path(0, 8, node_of(leaves))
    assert [digest.hex() for digest in path] == INCLUSION_0_8
    proof = merkle.consistency_path(6, 8, node_of(leaves))
    assert [digest.hex() for digest in proof] == CONSISTENCY_6_8


def test_roots_and_frontiers_of_every_size() -> None:
    builder = merkle.Builder()
    frontier: list[bytes] = []
    for size in range(LARGEST + 1):
        root = reference(0, size)
        assert builder.root() == root
        assert builder.frontier() == frontier == merkle.frontier_at(size, node)
        assert merkle.fold(frontier) == root
        if size < LARGEST:
            list(builder.push(LEAVES[size]))
            frontier = merkle.extend(frontier, size, [LEAVES[size]])


def test_every_inclusion_proof_of_every_size() -> None:
    for size in range(1, LARGEST + 1):
        root = reference(0, size)
        for index in range(size):
            path = merkle.inclusion_path(index, size, node)
            assert merkle.root_from_inclusion(index, size, LEAVES[index], path) == root


def test_every_consistency_proof_of_every_size() -> None:
    for new in range(1, LARGEST + 1):
        for old in range(1, new + 1):
            path = merkle.consistency_path(old, new, node)
            merkle.check_consistency(old, new, reference(0, old), reference(0, new), path)


def leads_to(index: int, size: int, leaf: bytes, path: list[bytes]) -> bytes | None:
    try:
        return merkle.root_from_inclusion(index, size, leaf, path)
    except IntegrityError:
        return None


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 13, 64, 100, 257])
def test_a_wrong_inclusion_proof_never_leads_to_the_root(size: int) -> None:
    root = reference(0, size)
    for index in range(size):
        path = merkle.inclusion_path(index, size, node)
        other = merkle.leaf_hash(b"other")
        assert leads_to(index, size, other, path) != root
        assert leads_to(index, size, LEAVES[index], [*path, other]) != root
        assert leads_to(index, size, LEAVES[index], path[:-1]) != root or not path
        for i in range(len(path)):
            assert leads_to(index, size, LEAVES[index], [*path[:i], other, *path[i + 1 :]]) != root
            assert leads_to(index, size, LEAVES[index], [*path[:i], *path[i + 1 :]]) != root
        for wrong in {index ^ 1, index + 1, size, -1} - {index}:
            assert leads_to(wrong, size, LEAVES[index], path) != root


@pytest.mark.parametrize(("old", "new"), [(1, 2), (3, 7), (4, 8), (6, 8), (8, 8), (100, 257), (256, 257)])
def test_a_wrong_consistency_proof_is_refused(old: int, new: int) -> None:
    good = merkle.consistency_path(old, new, node)
    roots = reference(0, old), reference(0, new)
    other = merkle.leaf_hash(b"other")
    wrong = [[*good, other], good[:-1], good[1:], *([*good[:i], other, *good[i + 1 :]] for i in range(len(good)))]
    for path in wrong:
        if path != good:
            with pytest.raises(IntegrityError):
                merkle.check_consistency(old, new, *roots, path)
    with pytest.raises(IntegrityError):
        merkle.check_consistency(old, new, other, roots[1], good)
    with pytest.raises(IntegrityError):
        merkle.check_consistency(old, new, roots[0], other, good)
    with pytest.raises(IntegrityError):
        merkle.check_consistency(0, new, roots[0], roots[1], good)


def test_a_leaf_cannot_be_taken_for_a_node() -> None:
    left, right = LEAVES[:2]
    assert merkle.leaf_hash(left + right) != merkle.node_hash(left, right)


def test_tiles_of_two_levels() -> None:
    builder = merkle.Builder()
    leaves = [i.to_bytes(32, "big") for i in range(256 * 256 + 300)]
    tiles = [tile for leaf in leaves for tile in builder.push(leaf)]
    assert [(tile.level, tile.n) for tile in tiles if tile.level] == [(1, 0)]
    assert [tile.n for tile in tiles if not tile.level] == list(range(257))
    for tile in tiles:
        if tile.level == 0:
            assert tile.hashes == b"".join(leaves[256 * tile.n : 256 * tile.n + 256])
        hashes = [tile.hashes[i : i + 32] for i in range(0, len(tile.hashes), 32)]
        assert tile.root == merkle.subtree_root(hashes)
    assert builder.root() == merkle.fold(merkle.extend([], 0, leaves))
