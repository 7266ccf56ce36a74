"""The key agent, always as a process of its own, as it runs in production."""

import contextlib
import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import pytest

from appliance.errors import Busy, IntegrityError, IsolationViolated, KeyUnavailable, UsageError
from appliance.store import client, nodes
from appliance.store.agent import AgentClient, AgentStatus, _Agent, serve
from appliance.store.keys import KeyRing, RootKey, body_private_key, fingerprint_key
from appliance.store.protocol import MAX_MESSAGE, LockRequest, send_message
from appliance.values import to_json

REPO = Path(__file__).parents[3]
STORE_ID, SECRET = "0f" * 16, bytes(range(32))

AGENT = """
import os, sys, time
from pathlib import Path
from appliance.errors import ApplianceError, BudgetExceeded, KeyUnavailable
from appliance.store.agent import serve
from appliance.store.keys import RootKey

def follow(places, proof):
    if places != "ab" * 32:
        raise KeyUnavailable("lies elsewhere")
    return 7 + len(proof)

def authorise(request):
    assert request.peer_uid == os.geteuid() and request.peer_pid > 0 and request.epoch == 1
    if request.evidence == b"bug":
        raise ZeroDivisionError("secret evidence")
    if request.evidence != b"reserved:" + request.dataset_id.encode():
        raise BudgetExceeded("there is no reservation", hint="reserve first", where="head")

root = RootKey(sys.argv[3], bytearray(bytes.fromhex(sys.argv[4])))
buffer = root.buffer
try:
    judge = dict(authorise=authorise, follow=follow)
    serve(Path(sys.argv[1]), root, kek_dir=Path(sys.argv[2]), ttl_s=float(sys.argv[5]), who="ada", **judge)
except ApplianceError as error:
    sys.exit(error.exit_status)
print("zeroed" if buffer == bytes(32) else "NOT ZEROED")
"""
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def ring(tmp_path) -> KeyRing:
    return KeyRing.create(RootKey(STORE_ID, bytearray(SECRET)), tmp_path / "keks")


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "agent" / "socket"


@pytest.fixture
def start(tmp_path, ring, path) -> Iterator[Start]:
    running = []

    def start_(ttl_s: float = 60, at: Path = path, before: str = "") -> subprocess.Popen[str]:
        arguments = [str(at), str(tmp_path / "keks"), STORE_ID, SECRET.hex(), str(ttl_s)]
        command = [sys.executable, "-c", before + AGENT, *arguments]
        child = subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, text=True)
        running.append(child)
        deadline = time.monotonic() + 120
        while AgentClient(at).status().state != "unsealed" and child.poll() is None:
            assert time.monotonic() < deadline, "the agent does not answer"
            time.sleep(0.01)
        return child

    yield start_
    for child in running:
        child.kill()
        child.communicate()


@contextlib.contextmanager
def connected(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(path))
        yield connection


def test_several_clients_one_after_another(path, start, ring):
    start()
    for dataset in ("ds-1", "ds-2", "ds-3"):
        key, wrapped, epoch, fingerprints = AgentClient(path).ingest_keys(dataset)
        assert fingerprints == fingerprint_key(ring.root)
        assert ring.unwrap(wrapped, dataset, epoch) == key
        assert AgentClient(path).release(b"reserved:" + dataset.encode(), dataset, wrapped, epoch) == key
    assert AgentClient(path).body_key() == body_private_key(ring.root)


def test_a_key_goes_sealed_to_a_node(tmp_path, path, start):
    start()
    client, context = AgentClient(path), "ab" * 32
    key, wrapped, epoch, _ = client.ingest_keys("ds-1")
    node = nodes.create(tmp_path / "node")
    sealed = client.seal(b"reserved:ds-1", "ds-1", wrapped, epoch, node, context)
    assert nodes.unseal(sealed, tmp_path / "node", context) == key
    with pytest.raises(KeyUnavailable, match="no reservation"):
        client.seal(b"reserved:ds-2", "ds-1", wrapped, epoch, node, context)
    with pytest.raises(IntegrityError):
        client.seal(b"reserved:ds-2", "ds-2", wrapped, epoch, node, context)
    with pytest.raises(UsageError):
        client.seal(b"reserved:ds-1", "ds-1", wrapped, epoch, node, "no digest")


def test_it_follows_the_log_and_says_how_far(path, start):
    start()
    client = AgentClient(path)
    assert client.follow("ab" * 32) == 7
    assert client.follow("ab" * 32, "proof") == 12
    with pytest.raises(KeyUnavailable, match="lies elsewhere"):
        client.follow("cd" * 32)


def test_status_says_who_and_until_when(path, start):
    assert AgentClient(path).status() == AgentStatus("sealed")
    begun = int(time.time())  # the end is said in whole seconds
    start(ttl_s=3600)
    status = AgentClient(path).status()
    assert (status.state, status.who) == ("unsealed", "ada")
    assert begun <= datetime.fromisoformat(status.until).timestamp() - 3600 <= time.time()
    assert status.until.endswith("Z")


def test_lock_zeroes_and_exits(path, start):
    child = start()
    AgentClient(path).lock()
    assert child.communicate(timeout=60)[0] == "zeroed\n"
    assert child.returncode == 0
    assert not path.exists()
    assert AgentClient(path).status().state == "sealed"


SLOW_TO_END = """
import os, pathlib, time
unlink, close = pathlib.Path.unlink, os.close
pathlib.Path.unlink = lambda *path, **how: (time.sleep(0.5), unlink(*path, **how))
os.close = lambda fd: (time.sleep(0.5), close(fd))
"""


def test_when_lock_returns_nothing_of_the_agent_is_in_the_way_of_the_next(path, start):
    """A copy of the home would stumble over its socket, and another agent over its lock."""
    child = start(before=SLOW_TO_END)
    AgentClient(path).lock()
    assert not path.exists()
    with open(f"{path}.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert child.communicate(timeout=60)[0] == "zeroed\n"


def test_who_waits_in_line_at_an_agent_that_ends_is_told_that_it_is_sealed(path, start, monkeypatch):
    child = start()
    waiting, at_once = AgentClient(path), AgentClient(path)._connect
    # The first is heard first and says nothing: both others are in line until its time is up.
    with connected(path), connected(path) as locker:
        send_message(locker, to_json(LockRequest()))
        lines = [at_once()]
        monkeypatch.setattr(waiting, "_connect", lambda: lines.pop() if lines else at_once())
        assert waiting.status() == AgentStatus("sealed")
    assert not lines
    assert child.wait(timeout=30) == 0


def test_an_agent_that_is_stopped_does_not_answer_and_is_not_asked_again(path, start, monkeypatch):
    child = start()
    monkeypatch.setattr(client, "_REPLY_WITHIN_S", 1)
    child.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(KeyUnavailable, match="does not answer"):
        AgentClient(path).status()
    assert time.monotonic() - began < 1.9
    child.send_signal(signal.SIGCONT)
    assert AgentClient(path).status().state == "unsealed"


def test_more_clients_than_the_line_has_places_wait_for_one(path, start):
    start()
    with connected(path), ThreadPoolExecutor(30) as pool:  # the first says nothing until the agent hangs up
        answers = list(pool.map(lambda _: AgentClient(path).status().state, range(30)))
    assert answers == ["unsealed"] * 30


def test_lock_zeroes_before_it_answers(tmp_path, ring):
    buffer = ring.root.buffer
    agent = _Agent(ring, AgentStatus("unsealed", "ada"), lambda _: None, lambda *_: 0)
    assert agent._answer(b'{"op":"lock"}', 1, os.geteuid()) == {}
    assert buffer == bytes(32)


def test_a_request_that_announces_too_much_is_refused_at_once(path, start):
    start()
    with connected(path) as connection:
        connection.sendall(struct.pack("<I", MAX_MESSAGE + 1))
        assert "too large" in json.loads(connection.recv(1000)[4:])["message"]


def test_it_expires(path, start):
    child = start(ttl_s=1.0)
    assert child.communicate(timeout=60)[0] == "zeroed\n"
    with pytest.raises(KeyUnavailable):
        AgentClient(path).body_key()


@pytest.mark.parametrize("call", ["lock", "body_key"])
def test_without_an_agent_a_hint_says_what_to_do(path, call):
    with pytest.raises(KeyUnavailable) as caught:
        getattr(AgentClient(path), call)()
    assert caught.value.hint == "appliance key unlock"


def test_refused_evidence_gets_no_key(path, start, ring):
    start()
    key, wrapped, epoch, _ = AgentClient(path).ingest_keys("ds-1")
    for evidence in (b"", b"reserved:ds-2", os.urandom(100_000)):
        with pytest.raises(KeyUnavailable, match="no reservation") as caught:
            AgentClient(path).release(evidence, "ds-1", wrapped, epoch)
        assert (caught.value.hint, caught.value.where) == ("reserve first", "head")
    assert AgentClient(path).release(b"reserved:ds-1", "ds-1", wrapped, epoch) == key


def test_evidence_for_one_dataset_does_not_release_another(path, start):
    start()
    client = AgentClient(path)
    _, wrapped, epoch, _ = client.ingest_keys("ds-1")
    client.ingest_keys("ds-2")
    with pytest.raises(IntegrityError):
        client.release(b"reserved:ds-2", "ds-2", wrapped, epoch)


def test_a_bug_in_the_judge_refuses_and_shows_nothing(path, start):
    start()
    _, wrapped, epoch, _ = AgentClient(path).ingest_keys("ds-1")
    with pytest.raises(KeyUnavailable) as caught:
        AgentClient(path).release(b"bug", "ds-1", wrapped, epoch)
    assert "secret" not in repr(caught.value)
    assert AgentClient(path).status().state == "unsealed"


def test_an_unknown_epoch_is_unavailable(path, start):
    start()
    _, wrapped, _, _ = AgentClient(path).ingest_keys("ds-1")
    with pytest.raises(KeyUnavailable):
        AgentClient(path).release(b"reserved:ds-1", "ds-1", wrapped, 7)


@pytest.mark.parametrize("dataset", ["", "a/b", "x" * 129, "\ud800"])
def test_a_malformed_id_is_refused_before_it_is_sent(path, start, dataset):
    start()
    with pytest.raises(UsageError):
        AgentClient(path).ingest_keys(dataset)


def test_too_much_evidence_is_refused_before_it_is_sent(path, start):
    start()
    with pytest.raises(UsageError):
        AgentClient(path).release(bytes(MAX_MESSAGE), "ds-1", "w", 1)


MALFORMED = [
    b"",
    b"\x01",
    struct.pack("<I", 10) + b"{}",
    struct.pack("<I", 2**32 - 1),
    struct.pack("<I", MAX_MESSAGE + 1) + bytes(1000),
    *(
        struct.pack("<I", len(body)) + body
        for body in (
            b"",
            b"null",
            b"{}",
            b"\xff\xfe",
            b"[" * 100_000,
            b'{"op":"root_key"}',
            b'{"op":"lock","now":true}',
            b'{"op":"release","evidence":"*","dataset_id":"d","wrapped":"w","epoch":1}',
            b'{"op":"release","evidence":"","dataset_id":"d","wrapped":"w","epoch":1.0}',
            b'{"op":"release","evidence":"","dataset_id":"d","wrapped":"w","epoch":-1}',
            b'{"op":"ingest_keys","dataset_id":"../x"}',
            b'{"op":["lock"]}',
        )
    ),
]


def test_malformed_requests_are_survived_and_get_no_key(path, start):
    child = start()
    for message in MALFORMED:
        with connected(path) as connection:
            connection.sendall(message)
            connection.shutdown(socket.SHUT_WR)
            reply = b""
            with contextlib.suppress(ConnectionResetError):
                while part := connection.recv(65536):
                    reply += part
        if reply:
            assert json.loads(reply[4:])["error"] in ("UsageError", "IntegrityError", "KeyUnavailable"), message[:80]
    assert AgentClient(path).status().state == "unsealed"
    assert child.poll() is None


def test_a_client_that_stalls_or_trickles_or_vanishes_costs_a_bounded_time(path, start):
    start()
    with connected(path) as silent, connected(path) as trickling, connected(path) as vanishing:
        silent.sendall(b"\x08")
        trickling.sendall(struct.pack("<I", 1000))
        vanishing.sendall(struct.pack("<I", 15) + b'{"op":"status"}')
        vanishing.close()
        begun = time.monotonic()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while time.monotonic() - begun < 4.5:
                trickling.sendall(b"x")
                time.sleep(0.1)
        assert AgentClient(path).status().state == "unsealed"
        assert time.monotonic() - begun < 20


def test_a_second_agent_is_refused_and_the_first_goes_on(path, start):
    first = start()
    second = start()
    assert second.wait(timeout=60) == Busy.exit_status
    assert first.poll() is None
    assert AgentClient(path).status().state == "unsealed"


def test_a_killed_agent_does_not_block_the_next(path, start):
    first = start()
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert path.exists()  # the socket of the dead
    assert AgentClient(path).status().state == "sealed"
    start()
    assert AgentClient(path).status().state == "unsealed"


def test_a_socket_path_of_any_length_works(tmp_path, start):
    deep = tmp_path.joinpath(*["a-directory-with-a-long-name" * 3] * 4)
    deep.mkdir(parents=True)
    path = deep / "agent" / "socket"
    assert len(str(path)) > 300
    child = start(at=path)
    assert AgentClient(path).status().who == "ada"
    AgentClient(path).lock()
    assert child.communicate(timeout=60)[0] == "zeroed\n"


def test_the_directory_of_the_socket_is_closed_to_others(path, start):
    start()
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert path.stat().st_mode & 0o777 == 0o600


def test_an_open_directory_is_refused_and_the_key_zeroed(tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o755)
    root = RootKey(STORE_ID, bytearray(SECRET))
    buffer = root.buffer
    with pytest.raises(IsolationViolated):
        serve(
            tmp_path / "open" / "s",
            root,
            kek_dir=tmp_path,
            ttl_s=1,
            who="ada",
            authorise=lambda _: None,
            follow=lambda *_: 0,
        )
    assert buffer == bytes(32)


def test_another_user_gets_nothing_even_if_the_directory_was_opened(start):
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root: not run")
    with tempfile.TemporaryDirectory() as apart:  # not below what other tests rely on to be closed
        path = Path(apart) / "agent" / "socket"
        start(at=path)
        for directory in (path.parent, path.parent.parent):
            directory.chmod(0o755)
        path.chmod(0o666)
        assert _received_as_nobody(path) == "0\n"
        path.parent.chmod(0o700)
        assert AgentClient(path).status().state == "unsealed"


def _received_as_nobody(path: Path) -> str:
    """Ask for the body key as another user; gives how many bytes came."""
    code = (
        "import os, socket, struct, sys; s = socket.socket(socket.AF_UNIX); os.setuid(65534); s.connect(sys.argv[1]);"
        'm = b\'{"op":"body_key"}\'\n'
        "try:\n s.sendall(struct.pack('<I', len(m)) + m); print(len(s.recv(1000)))\n"
        "except (BrokenPipeError, ConnectionResetError): print(0)"
    )
    return subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True).stdout


def test_an_agent_of_another_user_is_not_believed(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root: not run")
    path = tmp_path / "impostor"
    code = (
        "import os, socket, sys, time; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); os.setuid(65534);"
        "s.listen(1); print('up', flush=True); time.sleep(30)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) as impostor:
        assert impostor.stdout.readline() == "up\n"
        with pytest.raises(KeyUnavailable, match="another user"):
            AgentClient(path).ingest_keys("ds-1")
        impostor.kill()


def test_the_root_key_is_not_in_replies(path, start):
    start()
    client = AgentClient(path)
    assert SECRET not in b"".join(client.ingest_keys("ds-1")[::3]) + client.body_key()


def test_a_harmed_reply_is_refused(tmp_path):
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(8)
        for reply in (b"", b"null", b"[]", b"{}", b'{"error":"SystemExit"}', b'{"body_key":1}', b'{"body_key":"*"}'):
            pid = os.fork()
            if pid == 0:
                connection, _ = listener.accept()
                connection.recv(1000)
                connection.sendall(struct.pack("<I", len(reply)) + reply)
                os._exit(0)
            with pytest.raises(KeyUnavailable):
                AgentClient(path).body_key()
            os.waitpid(pid, 0)
