"""`key`: unlock, lock, status, rotate. Unlocking starts the key agent, locking makes it forget the root key and end."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from appliance.errors import IntegrityError, KeyUnavailable, UsageError
from appliance.events.key import KeyLocked, KeyUnlocked
from appliance.flows import agent
from appliance.flows.home import Home, Operator, fingerprint
from appliance.ledger.heads import TreeHead
from appliance.store import keyslots
from appliance.store.client import AgentStatus
from appliance.store.keys import body_public_key, read_body_public_key


def unlock(home: Home, passphrase: str, operator: Operator, *, ttl_s: int) -> AgentStatus:
    """Open a keyslot and start the key agent for `ttl_s` seconds.

    Raises:
      KeyUnavailable: wrong passphrase.
    """
    if (status := home.agent().status()).state == "unsealed":
        return status
    root = keyslots.unlock(home.keyslots, passphrase)
    if body_public_key(root) != read_body_public_key(home.body_public_key):
        raise IntegrityError("the key for sealed names and reasons was replaced", where=str(home.body_public_key))
    actor = home.actor(operator)
    with home.ledger() as ledger:
        with ledger.transaction(actor, reason=operator.reason or None) as tx:
            tx.append(KeyUnlocked(until=_in(ttl_s)))
        ledger.sign()
    try:
        agent.start(home, root, ttl_s=ttl_s, who=actor.name)
    finally:
        root.wipe()
    return home.agent().status()


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
    if home.agent().status().state == "unsealed":
        raise UsageError("the key agent trusts only the keys it was started with", hint="appliance key lock")
    with home.ledger() as ledger:
        before = fingerprint(ledger.verifier_keys)
        entry, head = ledger.rotate(home.actor(operator), operator.reason or None)
        return Rotated(entry=entry, before=before, after=fingerprint(ledger.verifier_keys), head=head)


def _in(seconds: int) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat(timespec="seconds").replace("+00:00", "Z")


def lock(home: Home, operator: Operator) -> bool:
    """End the key agent; returns False if the store was sealed already."""
    client = home.agent()
    if client.status().state != "unsealed":
        return False
    client.lock()
    with home.ledger() as ledger, ledger.transaction(home.actor(operator), reason=operator.reason or None) as tx:
        tx.append(KeyLocked())
    return True


def require_unsealed(home: Home) -> None:
    """Raise `KeyUnavailable` unless the key agent is running."""
    if home.agent().status().state != "unsealed":
        raise KeyUnavailable("the store is sealed", hint="unlock it: `appliance key unlock`")
