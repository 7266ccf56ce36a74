"""The vectors of docs/spec/bundle.md and docs/spec/ledger.md through the stand-alone verifier."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import IntegrityError
from appliance.export import verify
from appliance.ledger import merkle, proof
from appliance.ledger.note import Checkpoint

VECTORS = Path(__file__).parents[2] / "vectors"
EXPECTED: dict[str, Any] = json.loads((VECTORS / "bundle" / "expected.json").read_text())
LEDGER: dict[str, Any] = json.loads((VECTORS / "ledger" / "vectors.json").read_text())


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    return Path(shutil.copytree(VECTORS / "bundle" / "bundle", tmp_path / "bundle"))


def code(directory: Path, *pin: str) -> int:
    return verify.verify(str(directory), pin).code


def test_the_golden_bundle(golden: Path) -> None:
    assert code(golden, str(VECTORS / "bundle" / "keys.txt")) == EXPECTED["pinned"] == 0
    assert code(golden, EXPECTED["fingerprint"]) == 0
    assert code(golden) == EXPECTED["unpinned"] == 14


@pytest.mark.parametrize("name", EXPECTED["changes"])
def test_a_change_to_it(golden: Path, name: str) -> None:
    change = EXPECTED["changes"][name]
    file = golden / change["path"]
    file.write_bytes(file.read_bytes().replace(change["old"].encode(), change["new"].encode()))
    assert code(golden, EXPECTED["fingerprint"]) == change["exit"]
    assert code(golden) == change["exit"]


def test_a_file_less_and_a_file_more(golden: Path) -> None:
    for name in EXPECTED["removed"]:
        data = (golden / name).read_bytes()
        (golden / name).unlink()
        assert code(golden, EXPECTED["fingerprint"]) == 8, name
        (golden / name).write_bytes(data)
    for name in EXPECTED["added"]:
        (golden / name).write_bytes(b"")
        assert code(golden, EXPECTED["fingerprint"]) == 8, name
        (golden / name).unlink()
    assert code(golden, EXPECTED["fingerprint"]) == 0


# --- the ledger's vectors --------------------------------------------------------------------------------------------


def check_proof(text: str, leaf: str, index: int) -> None:
    """What the verifier does with a proof: open its tree head with the pinned keys, then follow the path."""
    keys = [verify.Key(line, "keys") for line in LEDGER["verifier_keys"]]
    head = verify.open_head(text.partition("\n\n")[2], keys, "head")
    verify.check_inclusion(text, leaf.encode(), index, head, "proof")


def test_the_proof_of_the_ledger_vectors() -> None:
    check_proof(LEDGER["proof"]["text"], LEDGER["leaves"][1], 1)
    for other in (0, 2, 3):
        with pytest.raises(verify.Bad):
            check_proof(LEDGER["proof"]["text"], LEDGER["leaves"][other], 1)


@pytest.mark.parametrize("name", LEDGER["must_reject"])
def test_what_the_ledger_vectors_must_reject(name: str) -> None:
    text = LEDGER["must_reject"][name]
    with pytest.raises(verify.Bad):
        check_proof(text, LEDGER["leaves"][1], 1)


# --- proofs of every size --------------------------------------------------------------------------------------------


def head_of(size: int, root: bytes) -> verify.Head:
    return verify.Head(f"log\n{size}\n{Checkpoint('log', size, root).text().splitlines()[2]}\n\n", "head")


def test_proofs_of_every_size_agree_with_the_ledger() -> None:
    leaves = [bytes([i]) for i in range(34)]
    hashes = [merkle.leaf_hash(leaf) for leaf in leaves]

    def node(level: int, index: int) -> bytes:
        return merkle.subtree_root(hashes[index << level : (index + 1) << level])

    roots = [merkle.fold(merkle.frontier_at(size, node)) for size in range(len(leaves) + 1)]
    for size in range(1, len(leaves) + 1):
        head = head_of(size, roots[size])
        for index in range(size):
            path = merkle.inclusion_path(index, size, node)
            verify.check_inclusion(proof.encode(index, path, head.note), leaves[index], index, head, "p")
            for bad in (path[:-1], [*path, bytes(32)], [*path[:-1], bytes(32)]):
                if bad != path:
                    with pytest.raises(verify.Bad):
                        verify.check_inclusion(proof.encode(index, bad, head.note), leaves[index], index, head, "p")
        for old in range(1, size + 1):
            check_one(old, size, roots, merkle.consistency_path(old, size, node), head)


def check_one(old: int, size: int, roots: list[bytes], path: list[bytes], head: verify.Head) -> None:
    assert verify.check_consistency(proof.encode_consistency(old, roots[old], path), old, head, "c") == roots[old]
    checkpoint = Checkpoint("log", size, roots[size])
    assert proof.verify_consistency(proof.encode_consistency(old, roots[old], path), checkpoint).root == roots[old]
    wrong = [(old, bytes(32), path), (old, roots[old], [*path, bytes(32)]), (old, roots[old], path[1:] or [bytes(32)])]
    wrong += [(other, roots[old], path) for other in (old - 1, old + 1)]
    for number, root, hashes in wrong:
        text = proof.encode_consistency(number, root, hashes)
        with pytest.raises(verify.Bad):
            verify.check_consistency(text, number, head, "c")
        with pytest.raises(IntegrityError):
            proof.verify_consistency(text, checkpoint)
