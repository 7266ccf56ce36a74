import errno
import fcntl
import hashlib
import json
import os
import stat

import pytest

from appliance.errors import ArtefactMissing, IntegrityError, UsageError, WillNotFit
from appliance.records import ModelFile
from appliance.store import files


def test_write_atomic_replaces_and_sets_the_mode(tmp_path):
    path = tmp_path / "a"
    files.write_atomic(path, b"old")
    files.write_atomic(path, b"new", mode=0o644)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(tmp_path) == ["a"]


def test_write_atomic_can_refuse_to_replace(tmp_path):
    path = tmp_path / "a"
    files.write_atomic(path, b"old", replace=False)
    with pytest.raises(UsageError):
        files.write_atomic(path, b"new", replace=False)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_a_full_disk_is_will_not_fit_and_keeps_the_old_file(tmp_path, monkeypatch, call, code):
    path = tmp_path / "a"
    files.write_atomic(path, b"old")
    monkeypatch.setattr(os, call, lambda *_: (_ for _ in ()).throw(OSError(code, "injected")))
    with pytest.raises(WillNotFit):
        files.write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_failed_fsync_is_not_tried_again(tmp_path, monkeypatch):
    calls = []

    def fail(fd):
        calls.append(fd)
        raise OSError(errno.EIO, "injected")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="injected"):
        files.write_atomic(tmp_path / "a", b"new")
    assert len(calls) == 1
    assert os.listdir(tmp_path) == []


def test_commit_moves_a_file_and_a_directory(tmp_path):
    (tmp_path / "x").write_bytes(b"1")
    (tmp_path / "to").mkdir()
    files.commit(tmp_path / "x", tmp_path / "to" / "y")
    assert (tmp_path / "to" / "y").read_bytes() == b"1"
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").write_bytes(b"2")
    files.fsync_tree(tmp_path / "d")
    files.commit(tmp_path / "d", tmp_path / "to" / "d")
    assert (tmp_path / "to" / "d" / "f").read_bytes() == b"2"
    (tmp_path / "d").mkdir()
    with pytest.raises(UsageError):
        files.commit(tmp_path / "d", tmp_path / "to" / "d")


def test_sweep_spares_a_live_writer(tmp_path):
    (tmp_path / f".dead.0{files.PARTIAL}").write_bytes(b"")
    (tmp_path / "kept").write_bytes(b"")
    live = tmp_path / f".live.1{files.PARTIAL}"
    with live.open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert files.sweep(tmp_path) == 1
        assert sorted(os.listdir(tmp_path)) == [live.name, "kept"]
    assert files.sweep(tmp_path) == 1


def test_sweep_spares_what_is_being_staged(tmp_path):
    with files.staged(tmp_path / "a") as fd:
        files.write_all(fd, b"new")
        assert files.sweep(tmp_path) == 0
    assert (tmp_path / "a").read_bytes() == b"new"


def test_sweep_spares_a_directory_that_is_held(tmp_path):
    waiting = tmp_path / f".whole{files.PARTIAL}"
    waiting.write_bytes(b"")
    with files.unswept(tmp_path), files.unswept(tmp_path):
        assert files.sweep(tmp_path) == 0
    assert files.sweep(tmp_path) == 1


def before_the_next_lock(monkeypatch, act):
    """Run `act` just before a file is locked: what another process may do there."""
    lock, calls = fcntl.flock, []

    def locked(fd, how):
        if not calls and stat.S_ISREG(os.fstat(fd).st_mode):
            calls.append(fd)
            act()
        lock(fd, how)

    monkeypatch.setattr(files.fcntl, "flock", locked)


def test_a_file_that_was_swept_before_it_was_locked_is_made_again(tmp_path, monkeypatch):
    before_the_next_lock(monkeypatch, lambda: files.sweep(tmp_path))
    files.write_atomic(tmp_path / "a", b"whole")
    assert (tmp_path / "a").read_bytes() == b"whole"


def test_sweep_stands_a_file_that_is_published_meanwhile(tmp_path, monkeypatch):
    waiting = tmp_path / f".whole{files.PARTIAL}"
    waiting.write_bytes(b"")
    before_the_next_lock(monkeypatch, lambda: waiting.rename(tmp_path / "whole"))
    assert files.sweep(tmp_path) == 0
    assert (tmp_path / "whole").exists()


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "tree"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "b.bin").write_bytes(b"bb")
    (root / "a.json").write_bytes(b"{}")
    (root / "é").write_bytes(b"")
    return root


def test_tree_digest_is_the_digest_of_the_canonical_list(tree):
    digest, listed = files.tree_digest(tree)
    assert [file.path for file in listed] == ["a.json", "sub/b.bin", "é"]
    rows = [[f.path, f.bytes, f.sha256] for f in listed]
    canonical = json.dumps(rows, separators=(",", ":"), ensure_ascii=False).encode()
    assert digest == hashlib.sha256(canonical).hexdigest()
    assert listed[1] == ModelFile(path="sub/b.bin", bytes=2, sha256=hashlib.sha256(b"bb").hexdigest())
    files.verify_tree(tree, listed)


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
    _, listed = files.tree_digest(tree)
    spoil(tree)
    with pytest.raises(IntegrityError) as caught:
        files.verify_tree(tree, listed)
    assert caught.value.where == str(tree / name)


def test_a_recorded_path_cannot_lead_out_of_the_tree(tree, tmp_path):
    (tmp_path / "outside").write_bytes(b"x")
    outside = ModelFile(path="../outside", bytes=1, sha256=hashlib.sha256(b"x").hexdigest())
    with pytest.raises(IntegrityError):
        files.verify_tree(tree, [*files.tree_digest(tree)[1], outside])


def test_a_name_that_is_not_utf8_is_refused(tree):
    with open(os.fsencode(tree) + b"/\xff", "wb"):
        pass
    with pytest.raises(IntegrityError, match="not UTF-8"):
        files.tree_digest(tree)


def test_a_missing_tree_is_missing(tmp_path):
    with pytest.raises(ArtefactMissing):
        files.tree_digest(tmp_path / "none")
