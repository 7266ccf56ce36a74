"""Permits: a worker goes no further than it is told, and what it asked for outlives it."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import sys
import termios
import threading
import time

import pytest

from appliance.errors import Interrupted
from appliance.jobs import pipes
from appliance.jobs.permits import VARIABLE, Permits, Permitted, descriptors, opened

_WORKER = """
import os, sys
from appliance.jobs import pipes
from appliance.jobs.permits import Permitted
permitted = Permitted.inherited()
for attempt in range(1, 1000):
    permitted.ask(attempt)
    os.write(1, b"%d\\n" % attempt)
"""


def start(permits: Permits) -> subprocess.Popen[bytes]:
    """A worker that does nothing but ask, and says what it was permitted."""
    environment = os.environ | permits.environment()
    process = subprocess.Popen(
        [sys.executable, "-c", _WORKER], env=environment, pass_fds=permits.inherited, stdout=subprocess.PIPE
    )
    permits.hand_over()
    return process


def wait_until_asked(permits: Permits, attempt: int) -> None:
    deadline = time.monotonic() + 60
    while permits.asked() < attempt:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def wait_until_written(permits: Permits, askings: int) -> None:
    """Wait until so many askings lie in the pipe, and leave them there."""
    deadline, size = time.monotonic() + 60, struct.Struct("i")
    while size.unpack(fcntl.ioctl(permits.reads, termios.FIONREAD, bytes(size.size)))[0] < 8 * askings:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_worker_goes_as_far_as_it_is_permitted_and_asks_for_one_more() -> None:
    with opened() as permits, start(permits) as worker:
        assert worker.stdout is not None
        made = []
        for permitted in (1, 4, 5):
            permits.permit(permitted)
            wait_until_asked(permits, permitted + 1)
            made += [int(worker.stdout.readline()) for _ in range(permitted - len(made))]
            time.sleep(0.05)
            assert permits.asked() == permitted + 1
        worker.kill()
        assert made == [1, 2, 3, 4, 5]
        assert worker.stdout.read() == b""


def test_what_was_asked_for_outlives_a_worker_that_was_killed() -> None:
    with opened() as permits, start(permits) as worker:
        permits.permit(7)
        assert worker.stdout is not None
        for _ in range(7):
            worker.stdout.readline()
        wait_until_written(permits, 8)
        worker.kill()
        worker.wait()
        assert permits.asked() == 8
        permits.permit(9)  # nobody needs it any more
        began = time.monotonic()
        permits.wait(600)
        assert time.monotonic() - began < 60


def test_a_worker_whose_supervisor_is_gone_is_permitted_nothing() -> None:
    with opened() as permits, start(permits) as worker:
        permits.permit(3)
        wait_until_asked(permits, 4)
        os.close(permits.writes)
        permits.writes = -1
        assert worker.wait() == 1
        assert worker.stdout is not None
        assert worker.stdout.read().split() == [b"1", b"2", b"3"]


def test_a_worker_that_nobody_supervises_is_permitted_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", "3", "3,", "a,b", "-1,2"):
        monkeypatch.setenv(VARIABLE, value)
        assert descriptors() == ()
        with pytest.raises(Interrupted, match="nobody supervises"):
            Permitted.inherited()


def test_waiting_ends_when_the_worker_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    with opened() as permits:
        permits.permit(2)
        worker = Permitted(*permits.inherited)
        began = time.monotonic()
        threading.Timer(0.1, lambda: [worker.ask(1), worker.ask(2)]).start()
        permits.wait(600)
        assert permits.asked() == 2
        assert 0.05 < time.monotonic() - began < 60


@pytest.mark.timeout(60)
def test_a_worker_that_never_stops_asking_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with opened() as permits:
        with monkeypatch.context() as patch:  # a worker that writes faster than anybody reads
            patch.setattr(pipes.os, "read", lambda _, size: (7).to_bytes(8, "big") * (size // 8))
            assert permits.asked() == 7
        assert not permits.unread


def test_an_asking_that_comes_in_two_parts_is_one() -> None:
    with opened() as permits:
        number = (9).to_bytes(8, "big")
        os.write(permits.inherited[1], number[:5])
        assert permits.asked() == 0
        os.write(permits.inherited[1], number[5:])
        assert permits.asked() == 9
