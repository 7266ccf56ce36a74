"""`train start --nnodes` over WireGuard itself, in user space, between two network namespaces joined by a veth pair.

They are the hosts, each with a home of its own. The cable is watched, and a key is pulled out of the tunnel.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.flows.home import Home
from appliance.isolation.sandbox import WIREGUARD_DECLARED
from appliance.store import keyslots
from appliance.store.keys import KeyRing
from tests.e2e.conftest import PASSPHRASE, Appliance, Done, rewrite
from tests.e2e.test_ranks import attempts, ranks_of
from tests.e2e.test_selftest import altered
from tests.fault.test_train_crash import facts, gone, until
from tests.hosts import FIRST, two_hosts
from tests.tunnels import ENDS, Tunnel, tunnel, watched

STEPS = 40
RENDEZVOUS = f"{ENDS[0]}:29471"
STORED = "here/"  # what ranks write first into the store where they meet, in clear


@pytest.fixture(scope="module")
def link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tunnel]:
    with tunnel("link", tmp_path_factory.mktemp("etc")) as made:
        yield made


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The software, with less patience for a machine from which nothing comes back."""
    directory = tmp_path_factory.mktemp("software")
    altered(directory, "worker/meeting.py", "SILENCE_S = 60", "SILENCE_S = 12")
    return directory


@pytest.fixture
def control(appliance: Appliance, link: Tunnel) -> Appliance:
    """The control node at the first end of the tunnel."""
    return Appliance(appliance.home, prefix=link.on(0))


@pytest.fixture
def node(tmp_path: Path, link: Tunnel) -> Appliance:
    """A node at the second end."""
    made = Appliance(tmp_path / "node-home", prefix=link.on(1))
    made("node", "init")
    return made


def with_software(appliance: Appliance, software: Path) -> Appliance:
    return Appliance(appliance.home, prefix=(*appliance.prefix, "env", "-C", str(software)), options=())


class Process:
    """A command that goes on."""

    def __init__(self, appliance: Appliance, *words: str) -> None:
        self.process = appliance.popen("--json", *words)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def close(self) -> Done:
        out, err = self.process.communicate(timeout=600)
        assert "Traceback" not in err, err
        return Done(self.process.returncode, out, err)


def ticket_of(control: Appliance, run: Process, old: str = "") -> Path:
    """The one ticket of a start, once it is there and is not the old one."""

    def found() -> list[Path]:
        assert run.process.poll() is None, run.process.communicate()[1]
        tickets = control.home.glob("runs/run_*/tickets/[0-9a-f]*.json")
        return [path for path in tickets if path.read_text() != old]

    until(found, "there is a ticket")
    return found()[0]


def carried(control: Appliance, ticket: Path, directory: Path) -> tuple[str, ...]:
    """Ticket, object and model as they come to a node, and the words to join with them."""
    directory.mkdir()
    job = json.loads(ticket.read_text())["job"]
    shutil.copy(ticket, directory / "ticket.json")
    shutil.copy(control.home / "objects" / job["dataset"]["blake3"], directory / "object")
    shutil.copytree(control.home / "models" / job["model_sha256"], directory / "model")
    where = ("--object", str(directory / "object"), "--model", str(directory / "model"))
    return "train", "join", str(directory / "ticket.json"), *where


def data_key(appliance: Appliance) -> bytes:
    root = keyslots.unlock(appliance.home / "keys" / "keyslots.json", PASSPHRASE.encode())
    home = Home.open(appliance.home)
    with home.rows() as rows:
        (row,) = rows.datasets.list()
    return KeyRing(root, home.epoch_keys).unwrap(row.wrapped_key, row.id, row.key_epoch)


def holding(key: bytes, *directories: Path) -> list[Path]:
    """The files that hold the key: as bytes, hex or base64."""
    forms = (key, key.hex().encode(), base64.b64encode(key)[:-2])
    files = [path for directory in directories for path in directory.rglob("*") if path.is_file()]
    return [path for path in files if any(form in content(path) for form in forms)]


def content(path: Path) -> bytes:
    """What is in a file; nothing if it has gone: a run that goes on writes under names that are for a moment."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


@pytest.mark.timeout(1800)
def test_a_run_over_wireguard_is_interrupted_by_a_pulled_key_and_goes_on(
    control: Appliance, node: Appliance, link: Tunnel, impatient: Path, small_run: Path, tmp_path: Path
) -> None:
    path = rewrite(small_run, tmp_path / "run.yaml", steps=STEPS, expected_batch_size=6, spare_steps=11)
    key = data_key(control)
    public = node.home / "node" / "node.pub"
    several = ("--nnodes", "2", "--rendezvous", RENDEZVOUS, "--node", str(public))
    outside, inside = (link.hosts[0], "veth0"), (link.insides[0], link.interfaces[0])

    with watched(*outside, STORED) as on_cable, watched(*inside, STORED) as in_tunnel:
        with Process(with_software(control, impatient), "train", "start", str(path), *several) as run:
            ticket = ticket_of(control, run)
            old = ticket.read_text()
            words = carried(control, ticket, tmp_path / "first")
            with Process(with_software(node, impatient), *words) as joined:
                until(lambda: joined.process.poll() is not None or attempts(control) >= 3, "they train together")
                assert joined.process.poll() is None, joined.close().err
                (rank,) = ranks_of(joined.process.pid).values()
                os.kill(run.process.pid, signal.SIGSTOP)  # nothing more is permitted, so that the run does not end
                assert holding(key, control.home, node.home, tmp_path / "first") == []
                link.forget(0)
                os.kill(run.process.pid, signal.SIGCONT)
                lost, ended = joined.close(), run.close()
        assert (ended.status, lost.status) == (130, 130), ended.err + lost.err
        assert "the reservation stands" in ended.err
        assert "on the control node" in lost.err
        assert gone(rank)
        link.remember(0)

        made = attempts(control)
        (row,) = control.json("train", "status")["runs"]
        with Process(control, "train", "resume", row["run"], *several) as run:
            ticket = ticket_of(control, run, old)
            late = node(*words, "--timeout", "3", expect=130)  # the ticket of the first start
            assert "came within 3 s" in late.err
            words = carried(control, ticket, tmp_path / "second")
            done = node.json(*words)
            ended = run.close()
            assert ended.status == 0, ended.err
    assert (done["first_rank"], done["ranks"], done["of"]) == (1, 1, 2)
    settled = ended.document
    assert settled["state"] == "finished"
    assert settled["charged_attempts"] == attempts(control) >= max(STEPS, made + 1)
    assert made < STEPS

    fingerprint = node.json("node", "show")["fingerprint"]
    for kind in ("run.started", "run.resumed"):
        (started,) = facts(control, kind)
        assert (started["ranks"], started["nnodes"], started["nodes"]) == (2, 2, [fingerprint])
    (fact,) = facts(control, "run.settled")
    assert fact["isolation"]["network"] == WIREGUARD_DECLARED
    assert holding(key, control.home, *tmp_path.glob("[fns]*")) == []
    (tmp_path / "second" / "leak").write_text(f"x{key.hex()}")
    assert holding(key, tmp_path / "second") == [tmp_path / "second" / "leak"]  # the search finds what is there
    assert not (control.home / "runs" / row["run"] / "tickets").exists()
    control("ledger", "verify")

    assert (on_cable["other"], on_cable["needle"]) == ([], 0)
    assert on_cable["wireguard"] > 2 * STEPS
    assert in_tunnel["needle"] > 0  # the search finds what is there


@pytest.fixture(scope="module")
def hosts() -> Iterator[list[str]]:
    with two_hosts("node") as names:
        yield names


def test_a_network_that_is_not_wireguard_is_refused_before_anything_starts(
    appliance: Appliance, hosts: list[str], run_file: Path, tmp_path: Path
) -> None:
    stock = Appliance(appliance.home, prefix=("ip", "netns", "exec", hosts[0]))
    key = Appliance(tmp_path / "n").json("node", "init")["key"]
    several = ("--nnodes", "2", "--rendezvous", f"{FIRST}:29471", "--node", key)
    refused = stock("train", "start", str(run_file), *several, expect=7)
    assert "veth0 is not WireGuard" in refused.err
    assert "ip netns exec" in refused.err
    assert facts(appliance, "run.started") == []
    (row,) = appliance.json("train", "status")["runs"]
    elsewhere = ("--nnodes", "2", "--rendezvous", "10.99.0.1:29471", "--node", key)
    assert "has the address" in stock("train", "resume", row["run"], *elsewhere, expect=2).err
    assert appliance.json("train", "abort", row["run"])["charged_attempts"] == 0


def test_a_home_is_no_node_and_a_node_is_no_home(sealed: Appliance, tmp_path: Path) -> None:
    sealed("node", "init", expect=2)
    sealed("node", "show", expect=11)
    node = Appliance(tmp_path / "n")
    made = node("node", "init").out.splitlines()
    assert made[0] + "\n" == (tmp_path / "n" / "node" / "node.pub").read_text()
    assert node("node", "show").out.splitlines() == made
    node("node", "init", expect=2)
    node("ledger", "verify", expect=11)
