"""`key`: unlock, lock, status, rotate. Unlocking starts the key agent, locking makes it forget the root key and end."""

from __future__ import annotations

import subprocess
import time
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from appliance.errors import IntegrityError, KeyUnavailable, UsageError
from appliance.events.key import KeyLocked, KeyUnlocked
from appliance.files import locked, make_directory
from appliance.flows.desk import Desk
from appliance.flows.home import Home, Operator, fingerprint
from appliance.isolation import interpreter
from appliance.ledger.heads import TreeHead
from appliance.store import keyslots
from appliance.store.charge import Charge, send
from appliance.store.client import AgentClient, AgentStatus
from appliance.store.keys import RootKey, body_public_key, read_body_public_key


def unlock(home: Home, passphrase: bytearray, operator: Operator, *, ttl_s: int) -> AgentStatus:
    """Open a keyslot and start the key agent for `ttl_s` seconds; one that runs already makes room for it.

    Raises:
      KeyUnavailable: wrong passphrase, also where the store is unsealed; the running agent then goes on.
    """
    root = keyslots.unlock(home.keyslots, passphrase)
    if body_public_key(root) != read_body_public_key(home.body_public_key):
        raise IntegrityError("the key for sealed names and reasons was replaced", where=str(home.body_public_key))
    try:
        with _alone(home), Desk.open(home, operator) as desk:
            newest = desk.record(KeyUnlocked(until=_in(ttl_s)))
            charge = Charge(
                socket=str(home.agent_socket),
                epoch_keys=str(home.epoch_keys),
                ttl_s=ttl_s,
                who=desk.actor.name,
                trusted=list(desk.ledger.verifier_keys),
                since=newest + 1,
                head=desk.ledger.anchored().note,
                anchor=str(home.anchor),
                places=home.places,
            )
            _end_agent(home)
            start_agent(home, root, charge)
    finally:
        root.wipe()
    return home.agent().status()


def _alone(home: Home) -> AbstractContextManager[int]:
    """Let nobody else start a key agent, or change the keys that it trusts, meanwhile."""
    make_directory(home.agent_socket.parent)
    return locked(home.agent_socket.parent)


def _end_agent(home: Home, wait_s: float = 20.0) -> None:
    """End the key agent that runs, if one does; what it would answer meanwhile is that the store is sealed."""
    client, deadline = home.agent(), time.monotonic() + wait_s
    _tell_to_lock(client)
    while client.status().state == "unsealed" and time.monotonic() < deadline:
        time.sleep(0.05)


def start_agent(home: Home, root: RootKey, charge: Charge, wait_s: float = 60.0) -> None:
    """Start the agent as a process of its own; returns when it answers. The root key goes through a pipe.

    Raises:
      KeyUnavailable: it did not start.
    """
    process = subprocess.Popen(
        interpreter.module("appliance.keyagent"),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd=interpreter.DIRECTORY,
    )
    assert process.stdin is not None  # noqa: S101 - PIPE was asked for
    with suppress(BrokenPipeError), process.stdin as pipe:  # it has ended already
        send(pipe, root, charge)
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline and process.poll() is None:
        if home.agent().status().state == "unsealed":
            return
        time.sleep(0.05)
    process.kill()
    if process.wait() == 0:
        raise KeyUnavailable("the store was locked again at once", hint="appliance key unlock")
    raise KeyUnavailable("the key agent did not start")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotated:
    """A change of the ledger's signing keys: the entry that says so, the fingerprints before and after, the head."""

    entry: int
    before: str
    after: str
    head: TreeHead


def rotate_ledger(home: Home, operator: Operator) -> Rotated:
    """Change the ledger's signing keys; the old ones sign what was, both sign the entry that says so.

    Raises:
      UsageError: the store is unsealed, whose key agent trusts only the keys it was started with.
    """
    with _alone(home), Desk.open(home, operator) as desk:
        if home.agent().status().state == "unsealed":
            raise UsageError("the key agent trusts only the keys it was started with", hint="appliance key lock")
        before = fingerprint(desk.ledger.verifier_keys)
        entry, head = desk.ledger.rotate(desk.actor, desk.reason or None)
        return Rotated(entry=entry, before=before, after=fingerprint(desk.ledger.verifier_keys), head=head)


def _in(seconds: int) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat(timespec="seconds").replace("+00:00", "Z")


def lock(home: Home, operator: Operator) -> bool:
    """End the key agent; returns False if the store was sealed already."""
    if not _tell_to_lock(home.agent()):
        return False
    with Desk.open(home, operator) as desk:
        desk.record(KeyLocked())
    return True


def _tell_to_lock(client: AgentClient) -> bool:
    """Tell the agent to forget its keys; returns False if none runs, or if it ended by itself before it heard this."""
    if client.status().state == "sealed":
        return False
    try:
        client.lock()
    except KeyUnavailable:
        if client.status().state == "unsealed":
            raise
        return False
    return True


def require_unsealed(home: Home) -> None:
    """Raise `KeyUnavailable` unless the key agent is running."""
    if home.agent().status().state != "unsealed":
        raise KeyUnavailable("the store is sealed", hint="unlock it: `appliance key unlock`")
