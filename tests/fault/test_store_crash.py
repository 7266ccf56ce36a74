"""Kill -9, failing calls and full disks while an object is sealed: old or new, never half, and never plaintext."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from appliance import files
from appliance.errors import WillNotFit
from appliance.store.container import open_bytes, seal_bytes, seal_records

REPO = Path(__file__).parents[2]
KEY = bytes(range(32))
TOKEN = b"Ms Quillfeather, room 12"


def run(code: str, *args: str, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*prefix, sys.executable, "-c", code, *args], cwd=REPO, capture_output=True, text=True, timeout=120, check=False
    )


SEAL_FOR_EVER = """
import itertools, sys
from pathlib import Path
from appliance.store.container import seal_records
seal_records(itertools.repeat(sys.argv[2].encode() * 40), Path(sys.argv[1]), bytes(range(32)), "ds-1")
"""


def test_kill_9_while_sealing_leaves_no_plaintext_and_no_object(tmp_path, stress_count):
    for round_ in range(stress_count(3, 40)):
        child = subprocess.Popen([sys.executable, "-c", SEAL_FOR_EVER, str(tmp_path / "o"), TOKEN.decode()], cwd=REPO)
        wanted, deadline = 200_000 * (1 + round_ % 5), time.monotonic() + 300
        while sum(path.stat().st_size for path in tmp_path.iterdir()) < wanted:
            assert time.monotonic() < deadline, "nothing was written"
            assert child.poll() is None, "the writer ended by itself"
        child.send_signal(signal.SIGKILL)
        child.wait()
        left = list(tmp_path.iterdir())
        assert [path.suffix for path in left] == [files.PARTIAL]
        assert TOKEN not in left[0].read_bytes()
        assert files.sweep(tmp_path) == 1
        assert list(tmp_path.iterdir()) == []


# Forks once for every call of write, fsync, rename and close that sealing makes, and dies or fails at that call.
KILL_AT_EVERY_CALL = """
import errno, json, os, signal, sys
from pathlib import Path
from appliance import files
from appliance.store.container import open_bytes, seal_bytes

KEY, NEW, OLD = bytes(range(32)), (sys.argv[2] * 100000).encode(), b"old"
real = {name: getattr(os, name) for name in ("write", "fsync", "rename", "fchmod")}

def child(path, stop, how):
    calls = 0
    def wrap(name):
        def call(*args):
            nonlocal calls
            calls += 1
            if calls == stop:
                if how == "half" and name == "write":
                    real["write"](args[0], bytes(args[1])[: len(args[1]) // 2])
                if how in ("kill", "half"):
                    os.kill(os.getpid(), signal.SIGKILL)
                raise OSError(how, "injected")
            return real[name](*args)
        return call
    for name in real:
        setattr(os, name, wrap(name))
    try:
        seal_bytes(NEW, path, KEY, "ds-1")
    except BaseException:
        os._exit(3)
    os._exit(0)

report, directory = [], Path(sys.argv[1])
for how in ("kill", "half", errno.ENOSPC, errno.EIO):
    stop, status = 0, None
    while status != 0 and stop < 100:
        stop += 1
        path = directory / f"{how}-{stop}"
        path.mkdir()
        seal_bytes(OLD, path / "o", KEY, "ds-1")
        pid = os.fork()
        if pid == 0:
            child(path / "o", stop, how)
        status = os.waitpid(pid, 0)[1]
        partial = [p.name for p in path.iterdir() if p.name != "o"]
        plain = any(sys.argv[2].encode() in p.read_bytes() for p in path.iterdir())
        content = open_bytes(path / "o", KEY, "ds-1")
        whole = content == OLD or content == NEW
        acknowledged_lost = status == 0 and content != NEW
        report.append([str(how), stop, status, len(partial), plain, whole, acknowledged_lost, files.sweep(path)])
print(json.dumps(report))
"""


def test_dying_or_failing_at_every_call_leaves_the_old_object_or_the_new(tmp_path):
    done = run(KILL_AT_EVERY_CALL, str(tmp_path), TOKEN.decode())
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert len(report) > 4 * 8
    for how, stop, _status, partials, plain, whole, lost, swept in report:
        where = (how, stop)
        assert not plain, where
        assert whole, where
        assert not lost, where
        assert swept == partials, where
        if how not in ("kill", "half"):
            assert partials == 0, where
    assert {how for how, _, status, *_ in report if status == signal.SIGKILL} == {"kill", "half"}
    assert sum(status == 0 for _, _, status, *_ in report) == 4  # each way ran until nothing was left to break


def test_the_search_for_plaintext_finds_a_planted_leak(tmp_path):
    """The writer with its encryption taken out: the same check as above must now fail."""
    planted = "from appliance.store.layout import Stream\n"
    planted += "Stream.seal_chunk = lambda self, i, data, out: out.__setitem__(slice(0, len(data)), data)\n"
    child = subprocess.Popen(
        [sys.executable, "-c", planted + SEAL_FOR_EVER, str(tmp_path / "o"), TOKEN.decode()], cwd=REPO
    )
    deadline = time.monotonic() + 300
    while sum(path.stat().st_size for path in tmp_path.iterdir()) < 200_000:
        assert time.monotonic() < deadline
    child.kill()
    child.wait()
    assert any(TOKEN in path.read_bytes() for path in tmp_path.iterdir())


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_a_full_disk_at_any_call_is_will_not_fit(tmp_path, monkeypatch, call):
    seal_bytes(b"old", tmp_path / "o", KEY, "c")
    monkeypatch.setattr(os, call, lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "injected")))
    with pytest.raises(WillNotFit):
        seal_records([b"new"] * 10, tmp_path / "o", KEY, "c")
    assert os.listdir(tmp_path) == ["o"]
    assert open_bytes(tmp_path / "o", KEY, "c") == b"old"


SEAL_ON_A_SMALL_DISK = """
import json, os, subprocess, sys
from pathlib import Path
from appliance.errors import WillNotFit
from appliance.store.container import open_bytes, seal_bytes, seal_records
kind, directory = sys.argv[1], Path(sys.argv[2])
if kind == "tmpfs":
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(directory)]
else:
    command = ["mount", "-o", "loop", sys.argv[3], str(directory)]
if subprocess.run(command, capture_output=True).returncode != 0:
    print(json.dumps("no mount"))
    sys.exit()
seal_bytes(b"old", directory / "o", bytes(32), "c")
before = sorted(os.listdir(directory))
try:
    seal_records((os.urandom(100_000) for _ in range(200)), directory / "o", bytes(32), "c")
    outcome = "sealed"
except WillNotFit as error:
    outcome = error.exit_status
same = sorted(os.listdir(directory)) == before and open_bytes(directory / "o", bytes(32), "c") == b"old"
seal_bytes(os.urandom(500_000), directory / "o", bytes(32), "c")
print(json.dumps([outcome, same]))
"""


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_disk_that_is_really_full_is_will_not_fit_and_nothing_is_left(tmp_path, kind):
    mounted, image = tmp_path / "small", tmp_path / "image"
    mounted.mkdir()
    if kind == "ext4":
        if shutil.which("mkfs.ext4") is None or os.geteuid() != 0:
            pytest.skip("a loop mount needs mkfs.ext4 and root: not run")
        image.write_bytes(bytes(8 << 20))
        subprocess.run(["mkfs.ext4", "-q", str(image)], check=True, capture_output=True)
    # In a mount namespace of its own, so that nothing stays mounted whatever happens.
    prefix = ("unshare", "--mount") if os.geteuid() == 0 else ("unshare", "--mount", "--map-root-user")
    done = run(SEAL_ON_A_SMALL_DISK, kind, str(mounted), str(image), prefix=prefix)
    if done.returncode != 0 and "unshare" in done.stderr:
        pytest.skip("this machine permits no mount namespace: not run")
    assert done.returncode == 0, done.stderr
    if json.loads(done.stdout) == "no mount":
        pytest.skip(f"this machine permits no {kind} mount: not run")
    assert json.loads(done.stdout) == [9, True]
