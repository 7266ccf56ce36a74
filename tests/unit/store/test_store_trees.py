import hashlib
import json
import os

import pytest

from appliance.errors import ArtefactMissing, IntegrityError
from appliance.store import trees
from appliance.values import FileDigest


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "tree"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "b.bin").write_bytes(b"bb")
    (root / "a.json").write_bytes(b"{}")
    (root / "é").write_bytes(b"")
    return root


def test_tree_digest_is_the_digest_of_the_canonical_list(tree):
    digest, listed = trees.tree_digest(tree)
    assert [file.path for file in listed] == ["a.json", "sub/b.bin", "é"]
    rows = [[f.path, f.bytes, f.sha256] for f in listed]
    canonical = json.dumps(rows, separators=(",", ":"), ensure_ascii=False).encode()
    assert digest == hashlib.sha256(canonical).hexdigest()
    assert listed[1] == FileDigest(path="sub/b.bin", bytes=2, sha256=hashlib.sha256(b"bb").hexdigest())
    trees.verify_tree(tree, listed)


@pytest.mark.parametrize(
    ("spoil", "name"),
    [
        (lambda t: (t / "sub" / "b.bin").write_bytes(b"bc"), "sub/b.bin"),
        (lambda t: (t / "sub" / "b.bin").write_bytes(b"bbb"), "sub/b.bin"),
        (lambda t: (t / "sub" / "b.bin").unlink(), "sub/b.bin"),
        (lambda t: (t / "extra").write_bytes(b""), "extra"),
        (lambda t: (t / "link").symlink_to("a.json"), "link"),
        (lambda t: (t / "linked").symlink_to("sub"), "linked"),
        (lambda t: os.mkfifo(t / "fifo"), "fifo"),
        (lambda t: (t / "a.json").rename(t / "c.json"), "a.json"),
    ],
)
def test_verify_tree_names_the_first_bad_file(tree, spoil, name):
    _, listed = trees.tree_digest(tree)
    spoil(tree)
    with pytest.raises(IntegrityError) as caught:
        trees.verify_tree(tree, listed)
    assert caught.value.where == str(tree / name)


def test_a_recorded_path_cannot_lead_out_of_the_tree(tree, tmp_path):
    (tmp_path / "outside").write_bytes(b"x")
    outside = FileDigest(path="../outside", bytes=1, sha256=hashlib.sha256(b"x").hexdigest())
    with pytest.raises(IntegrityError):
        trees.verify_tree(tree, [*trees.tree_digest(tree)[1], outside])


def test_a_name_that_is_not_utf8_is_refused(tree):
    with open(os.fsencode(tree) + b"/\xff", "wb"):
        pass
    with pytest.raises(IntegrityError, match="not UTF-8"):
        trees.tree_digest(tree)


def test_a_missing_tree_is_missing(tmp_path):
    with pytest.raises(ArtefactMissing):
        trees.tree_digest(tmp_path / "none")
