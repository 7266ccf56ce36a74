"""Supervising a worker: an interrupt ends it wherever the supervisor is when it comes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from appliance.errors import WillNotFit
from appliance.flows import launch
from appliance.jobs.rundir import RunDir
from appliance.jobs.train import TrainResult


class InterruptedInFinalizer:
    """What is raised in a finalizer is dropped, KeyboardInterrupt too."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupt_is_not_lost_in_a_finalizer(tmp_path: Path) -> None:
    seen = []

    def watch() -> None:
        if not seen:
            InterruptedInFinalizer()
        seen.append(1)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        launch.run_worker(RunDir(tmp_path), TrainResult, watch=watch)
    assert len(seen) == 1
    assert signal.getsignal(signal.SIGINT) is before
    launch.wait_for_workers(RunDir(tmp_path), wait_s=0)


def test_a_second_interrupt_is_raised_at_once(tmp_path: Path) -> None:
    def hang() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the second one was not raised")

    with pytest.raises(KeyboardInterrupt):
        launch.run_worker(RunDir(tmp_path), TrainResult, watch=hang)


def test_a_worker_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    with pytest.raises(WillNotFit, match="was stopped after 0 s"):
        launch.run_worker(RunDir(tmp_path), TrainResult, poll_s=0.01, within_s=0.0)
    launch.wait_for_workers(RunDir(tmp_path), wait_s=0)
    assert not RunDir(tmp_path).result.exists()


def test_the_time_for_foreign_files_grows_with_their_size(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"x")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(20 << 30)
    least = launch.time_for(tmp_path / "small", tmp_path / "missing")
    assert 600 <= least < 601
    assert launch.time_for(tmp_path / "large") == launch.time_for(tmp_path, tmp_path / "missing") - 0.5 / (1 << 20)
    assert launch.time_for(tmp_path / "large") == 600 + 10240
