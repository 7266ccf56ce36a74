"""The key agent as a process: started by `key unlock`, it holds the root key until it is locked or its time is up.

A key leaves it only against evidence: a signed tree head and an inclusion proof of a leaf that says what the key is
about to be used for (`Event.opens`). The leaf must be younger than the agent and than two minutes. It is accepted once
(once from each rank on this machine, where the leaf says how many there are), so evidence found in an old run directory
opens nothing. To a node the key is given only sealed, once, and only if the leaf names the node's key.
"""

from __future__ import annotations

import base64
import binascii
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from appliance.errors import ApplianceError, KeyUnavailable
from appliance.events.catalog import catalog
from appliance.flows.home import Home
from appliance.ledger import proof
from appliance.store.agent import ReleaseRequest, serve
from appliance.store.keys import RootKey

FRESH_S = 120.0


@dataclass(slots=True)
class Gatekeeper:
    """Decides which requests for a dataset key are honoured. Its `check` is the agent's `authorise`.

    Attributes:
      trusted: verifier keys of the log.
      since: size of the log when the agent started; evidence must be newer.
      clock: seconds since 1970.
      used: nonces that have opened a dataset, and the processes that showed them.
      sealed: nonces and nodes for which a key has been sealed.
    """

    trusted: tuple[str, ...]
    since: int
    clock: Callable[[], float] = time.time
    used: dict[str, set[int]] = field(default_factory=dict)
    sealed: set[tuple[str, str]] = field(default_factory=set)

    def check(self, request: ReleaseRequest) -> None:
        """Return if the request is backed by a fresh, unused, signed leaf; raise `KeyUnavailable` otherwise."""
        leaf = self._proven_leaf(request.evidence)
        facts = leaf.get("facts", {})
        kind = catalog().get(str(leaf.get("type")))
        if kind is None or not kind.opens or facts.get(kind.opens) != request.dataset_id:
            raise KeyUnavailable("the evidence is not of a use of this key")
        started = datetime.fromisoformat(str(leaf["time"])).astimezone(UTC).timestamp()
        if leaf["index"] < self.since or self.clock() - started > FRESH_S:
            raise KeyUnavailable("the evidence is not fresh", hint="`appliance train resume RUN` makes fresh evidence")
        if request.node:
            self._use_for_node(facts, request.node)
        else:
            self._use_here(facts, request.peer_pid)

    def _use_here(self, facts: dict[str, Any], pid: int) -> None:
        here = int(facts.get("ranks", 1)) // int(facts.get("nnodes", 1))  # each machine runs as many
        shown_by = self.used.setdefault(str(facts.get("nonce")), set())
        if len(shown_by) >= here or pid in shown_by:
            raise _used()
        shown_by.add(pid)

    def _use_for_node(self, facts: dict[str, Any], node: str) -> None:
        if node not in facts.get("nodes", []):
            raise KeyUnavailable("the evidence does not name this node")
        use = (str(facts.get("nonce")), node)
        if use in self.sealed:
            raise _used()
        self.sealed.add(use)

    def _proven_leaf(self, evidence: bytes) -> dict[str, Any]:
        try:
            document = orjson.loads(evidence)
            leaf = base64.b64decode(document["leaf"], validate=True)
            return proof.verify(str(document["proof"]), leaf, self.trusted).leaf
        except (orjson.JSONDecodeError, binascii.Error, KeyError, TypeError, ValueError, ApplianceError):
            raise KeyUnavailable("the evidence does not prove a run of this log") from None


def _used() -> KeyUnavailable:
    return KeyUnavailable("the evidence has been used", hint="`appliance train resume RUN` makes fresh evidence")


def evidence_for(text: str, leaf: bytes) -> bytes:
    """The evidence a worker shows: a C2SP inclusion proof with its tree head, and the leaf it is about."""
    return orjson.dumps({"proof": text, "leaf": base64.b64encode(leaf).decode()})


def start(home: Home, root: RootKey, *, ttl_s: int, who: str, wait_s: float = 20.0) -> None:
    """Start the agent as a process of its own; returns when it answers. The root key goes through a pipe.

    Raises:
      KeyUnavailable: it did not start.
    """
    home.agent_socket.parent.mkdir(mode=0o700, exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "appliance.flows.agent", str(home.root), str(ttl_s)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
    )
    assert process.stdin is not None  # noqa: S101 - PIPE was asked for
    with process.stdin as pipe:
        pipe.write(root.store_id.encode() + root.buffer + who.encode())
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        if home.agent().status().state == "unsealed":
            return
        time.sleep(0.05)
    process.kill()
    raise KeyUnavailable("the key agent did not start")


def main() -> None:
    """Entry point of the agent's process: `python -m appliance.flows.agent HOME TTL`, the rest on stdin."""
    home, ttl = Home.open(Path(sys.argv[1])), int(sys.argv[2])
    root, who = _receive()
    with home.ledger(writable=False) as ledger:
        newest = next(ledger.entries(limit=1, newest_first=True)).index
        gatekeeper = Gatekeeper(ledger.verifier_keys, since=newest + 1)
    serve(
        home.agent_socket,
        root,
        kek_dir=home.epoch_keys,
        ttl_s=ttl,
        who=who,
        authorise=gatekeeper.check,
    )


def _receive() -> tuple[RootKey, str]:
    """From standard input: 32 hex digits of the store's id, 32 bytes of root key, then the name of who unlocked."""
    message = bytearray(64)
    view = memoryview(message)
    while len(view) and (n := os.readv(0, [view])):
        view = view[n:]
    who = os.read(0, 4096).decode()
    os.close(0)
    secret = message[32:]
    root = RootKey(bytes(message[:32]).decode(), secret)
    message[:] = bytes(len(message))
    return root, who


if __name__ == "__main__":
    main()
