"""Two gateways at one Unix socket: one of them listens, and keeps it."""

from __future__ import annotations

import os
import socket
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import Busy
from appliance.files import locked
from appliance.jobs.serve import EngineSpec, ServeJob
from appliance.serve import listening


@pytest.fixture
def job(tmp_path: Path) -> ServeJob:
    engine = EngineSpec(name="primary", kind="command", model="/nowhere", model_sha256="1" * 64, command=("true",))
    place = str(tmp_path / "socket")
    return ServeJob(run_id="run_1", serving_id="serving_1", model="notes", engines=(engine,), clients="", socket=place)


@pytest.fixture
def dead(job: ServeJob) -> None:
    """A socket that a killed gateway left."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(job.socket)


@pytest.mark.usefixtures("dead")
def test_of_two_that_find_a_dead_socket_one_listens(
    job: ServeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others: list[Future[str]] = []

    def listen() -> str:
        with listening.opened(job, tmp_path) as (_, address):
            return address

    with ThreadPoolExecutor() as pool:

        def unlink(path: Any) -> None:
            """Let another gateway come once this one has seen that the socket is dead."""
            monkeypatch.undo()
            others.append(pool.submit(listen))
            wait(others, 0.3)
            os.unlink(path)

        monkeypatch.setattr(listening.os, "unlink", unlink)
        with listening.opened(job, tmp_path):
            with pytest.raises(Busy):
                others[0].result()
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(job.socket)
    assert not os.path.lexists(job.socket)


def test_who_ends_removes_no_socket_of_another(job: ServeJob, tmp_path: Path) -> None:
    with listening.opened(job, tmp_path):
        os.unlink(job.socket)
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(job.socket)
    assert os.path.lexists(job.socket)


def test_a_gateway_on_loopback_waits_for_nobody(job: ServeJob, tmp_path: Path) -> None:
    """A drill's lies in a directory that its supervisor keeps locked."""
    with locked(tmp_path), listening.opened(job.model_copy(update={"socket": ""}), tmp_path) as (_, address):
        assert address.startswith("http://127.0.0.1:")
