import errno
import fcntl
import os
import stat
import threading

import pytest

from appliance import files
from appliance.errors import UsageError, WillNotFit


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
    with pytest.raises(WillNotFit, match="the disk fails"):
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


def test_what_a_crash_left_of_a_file_is_written_over(tmp_path):
    left = tmp_path / f".a{files.PARTIAL}"
    left.write_bytes(b"longer than what comes")
    files.write_atomic(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a"]


def test_writers_of_one_file_take_turns(tmp_path):
    path = tmp_path / "a"

    def write(letter):
        for _ in range(50):
            files.write_atomic(path, letter * 10_000)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in (b"x", b"y", b"z")]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if path.exists():
            content = path.read_bytes()
            assert len(content) == 10_000
            assert len(set(content)) == 1
    assert os.listdir(tmp_path) == ["a"]


def test_a_directory_is_there_whole_or_not_at_all(tmp_path):
    with files.staged_directory(tmp_path / "above" / "d") as made:
        (made / "f").write_bytes(b"1")
        assert not (tmp_path / "above" / "d").exists()
    assert (tmp_path / "above" / "d" / "f").read_bytes() == b"1"

    def interrupted():
        with files.staged_directory(tmp_path / "above" / "e") as made:
            (made / "f").write_bytes(b"1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert os.listdir(tmp_path / "above") == ["d"]


def test_a_directory_with_content_is_not_replaced_and_what_a_crash_left_goes(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "kept").write_bytes(b"1")
    left = tmp_path / f".d{files.PARTIAL}"
    left.mkdir()
    (left / "litter").write_bytes(b"")
    with pytest.raises(UsageError), files.staged_directory(tmp_path / "d") as made:
        assert list(made.iterdir()) == []
    assert os.listdir(tmp_path) == ["d"]
    assert os.listdir(tmp_path / "d") == ["kept"]


def test_a_lock_is_held_by_one_and_shared_by_many(tmp_path):
    for path in (tmp_path / "file", tmp_path):
        with files.locked(path), pytest.raises(BlockingIOError):
            files.lock(path, wait=False)
        with files.locked(path, shared=True), files.locked(path, shared=True, wait=False):
            pass
