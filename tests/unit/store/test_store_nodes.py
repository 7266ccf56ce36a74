"""Keys of nodes: what is sealed to one opens there, with its ticket, and nowhere else."""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path

import pytest

from appliance.errors import ArtefactMissing, IntegrityError, IsolationViolated, KeyUnavailable, UsageError
from appliance.store import nodes
from appliance.store.nodes import NodeKey

KEY, CONTEXT = bytes(range(32)), "ab" * 32


def test_a_key_opens_on_its_node_with_its_ticket_only(tmp_path: Path) -> None:
    node, _ = nodes.create(tmp_path / "a"), nodes.create(tmp_path / "b")
    sealed = nodes.seal(KEY, node, CONTEXT)
    assert nodes.unseal(sealed, tmp_path / "a", CONTEXT) == KEY
    assert nodes.seal(KEY, node, CONTEXT) != sealed
    for directory, context in (("b", CONTEXT), ("a", "ac" * 32)):
        with pytest.raises(IntegrityError, match="does not open"):
            nodes.unseal(sealed, tmp_path / directory, context)


def test_no_byte_of_what_was_sealed_may_differ(tmp_path: Path) -> None:
    raw = base64.b64decode(nodes.seal(KEY, nodes.create(tmp_path), CONTEXT))
    assert KEY not in raw
    altered = [raw[:i] + bytes([raw[i] ^ 1]) + raw[i + 1 :] for i in range(len(raw))]
    for data in (*altered, raw[:-1], raw + b"x", b""):
        with pytest.raises(IntegrityError):
            nodes.unseal(base64.b64encode(data).decode(), tmp_path, CONTEXT)
    with pytest.raises(IntegrityError):
        nodes.unseal("no base64", tmp_path, CONTEXT)


def test_the_private_half_is_the_nodes_alone(tmp_path: Path) -> None:
    node = nodes.create(tmp_path / "node")
    private, public = (tmp_path / "node" / name for name in (nodes.PRIVATE, nodes.PUBLIC))
    assert (private.stat().st_mode & 0o777, private.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert nodes.read(tmp_path / "node") == node == NodeKey.parse(public.read_text())
    assert node.fingerprint == hashlib.sha256(public.read_bytes()).hexdigest()
    with pytest.raises(UsageError):
        nodes.create(tmp_path / "node")
    private.chmod(0o640)
    with pytest.raises(IsolationViolated, match="others can read"):
        nodes.read(tmp_path / "node")
    private.chmod(0o600)
    private.write_bytes(private.read_bytes()[:-2])
    with pytest.raises(IntegrityError, match="damaged"):
        nodes.read(tmp_path / "node")
    os.unlink(private)
    with pytest.raises(ArtefactMissing):
        nodes.read(tmp_path / "node")


@pytest.mark.parametrize(
    "line", ["", "ab" * 32, "appliance-node-key/1 " + "AB" * 32, "appliance-node-key/1 " + "a" * 63]
)
def test_what_is_no_public_key_is_refused(line: str) -> None:
    with pytest.raises(UsageError, match="not the public key"):
        NodeKey.parse(line)


def test_to_a_point_of_low_order_nothing_is_sealed() -> None:
    with pytest.raises(KeyUnavailable):
        nodes.seal(KEY, NodeKey(bytes(32)), CONTEXT)
