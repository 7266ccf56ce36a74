"""`ledger`: show, prove, verify. Reading only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from appliance.errors import IntegrityError, KeyUnavailable
from appliance.flows.home import Home, fingerprint
from appliance.ledger.entries import Entry
from appliance.ledger.verify import Verification


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """A verification, and in plain words what the holder of the signing key could still alter unnoticed."""

    verification: Verification
    anchor_external: bool
    exposure: str
    fingerprint: str


def verify(home: Home, progress: Callable[[int, int], None], *, pinned: str = "") -> Verified:
    """Check the whole ledger against itself, its signatures and its anchor.

    Raises:
      IntegrityError: it is not signed by the keys of the `pinned` fingerprint, or too damaged to be read.
    """
    with home.ledger(writable=False, checked=False) as ledger:
        keys = fingerprint(ledger.verifier_keys)
        if pinned and pinned.replace(" ", "").lower() != keys.replace(" ", ""):
            raise IntegrityError("the ledger is not signed by the keys of this fingerprint", hint=f"its keys: {keys}")
        found = ledger.verify(progress=progress)
    return Verified(
        verification=found,
        anchor_external=home.anchor_is_external,
        exposure=exposure(home, found.signed_size),
        fingerprint=keys,
    )


def exposure(home: Home, signed: int) -> str:
    """What could be done unnoticed, given how many entries the anchored tree head covers."""
    if home.anchor_is_external:
        return f"anchored outside the home up to entry {signed}; a copy of the home older than that is noticed"
    return (
        "the anchor lies inside the home: an older copy of the whole home is not detectable, and whoever holds the "
        "signing keys could alter every entry"
    )


def show(home: Home, index: int) -> tuple[Entry, dict[str, Any] | None]:
    """One entry and, while the store is unsealed, its body."""
    with home.ledger(writable=False) as ledger:
        entry = ledger.entry(index)
        try:
            body = ledger.body(index, home.agent().body_key())
        except KeyUnavailable:
            body = None
    return entry, body


def prove(home: Home, index: int) -> tuple[str, bytes]:
    """An inclusion proof of an entry under the newest signed tree head, and the leaf's bytes."""
    with home.ledger() as ledger:
        ledger.sign()
        return ledger.prove(index), ledger.leaf(index)
