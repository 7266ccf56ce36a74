"""Ranks of one start meet over TCP; ranks of another, or without the key, wait in vain and say so."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from appliance.jobs.ticket import Rendezvous
from appliance.worker import meeting

KEY, OTHER = "11" * 32, "22" * 32
PORTS = iter(range(15_000 + os.getpid() % 1000 * 10, 32_000))
NONCE, EARLIER = "aa" * 16, "bb" * 16

PAIRS = """
import json, os, sys
from pathlib import Path
import torch
from torch.distributed import PrefixStore, TCPStore
from appliance.errors import ApplianceError
from appliance.jobs.ticket import Rendezvous
from appliance.worker.meeting import meet

def one(rank, nonce, key, port, timeout_s):
    rendezvous = Rendezvous(
        host="127.0.0.1", port=port, nonce=nonce, first=0, size=2, timeout_s=timeout_s, here="127.0.0.1"
    )
    try:
        ranks = meet(rendezvous, rank, bytes.fromhex(key))
        told = ranks.share(torch.tensor([7 if rank == 0 else 0]))
        ranks.agree(told, "the same bits")
        return int(told)
    except ApplianceError as refusal:
        return f"{type(refusal).__name__}: {refusal.message}"

directory, found = Path(sys.argv[1]), {}
for name, port, timeout_s, ranks in json.loads(sys.argv[2]):
    children = []
    for rank, nonce, key in ranks:
        child = os.fork()
        if child == 0:
            (directory / f"{rank}").write_text(json.dumps(one(rank, nonce, key, port, timeout_s)))
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    found[name] = [json.loads((directory / f"{rank}").read_text()) for rank, _, _ in ranks]
print(json.dumps(found))
"""


def free_port() -> int:
    """A port that no connection of another test gets in the meantime: those are given higher ones."""
    for port in PORTS:
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("every port is taken")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        cases = [
            ("met", free_port(), 300.0, [(0, NONCE, KEY), (1, NONCE, KEY)]),
            ("another key", free_port(), 4.0, [(0, NONCE, KEY), (1, NONCE, OTHER)]),
            ("another start", free_port(), 4.0, [(0, NONCE, KEY), (1, EARLIER, KEY)]),
            ("nobody listens", free_port(), 2.0, [(1, NONCE, KEY)]),
            ("nobody comes", free_port(), 2.0, [(0, NONCE, KEY)]),
            ("taken", taken.getsockname()[1], 2.0, [(0, NONCE, KEY)]),
        ]
        command = [sys.executable, "-c", PAIRS, str(tmp_path_factory.mktemp("meeting")), json.dumps(cases)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr
    seen: dict[str, list[Any]] = json.loads(done.stdout)
    return seen


def test_ranks_of_one_start_meet(found: dict[str, list[Any]]) -> None:
    assert found["met"] == [7, 7]


@pytest.mark.parametrize("case", ["another key", "another start", "nobody listens", "nobody comes"])
def test_whoever_does_not_belong_waits_in_vain_and_does_not_hang(found: dict[str, list[Any]], case: str) -> None:
    for said in found[case]:
        assert said.startswith("Interrupted: not all 2 ranks of this start came within")


def test_a_port_that_is_taken_is_said_to_be(found: dict[str, list[Any]]) -> None:
    (said,) = found["taken"]
    assert said.startswith("Busy: port")


def test_names_in_the_store_follow_key_and_start_and_show_neither(tmp_path: Path) -> None:
    one = Rendezvous(host="10.9.0.1", port=1, nonce=NONCE, first=0, size=2, timeout_s=1.0)
    keys = {
        meeting.prefix(one.model_copy(update={"nonce": n}), bytes.fromhex(k))
        for n in (NONCE, EARLIER)
        for k in (KEY, OTHER)
    }
    assert len(keys) == 4
    assert not any(KEY[:8] in name or NONCE[:8] in name for name in keys)
