"""Somebody at work in a home: the open ledger, on whose behalf it is written, and why.

Whatever is written at a desk is signed and anchored before anything else happens. So an entry is relied on only once
the log's keys vouch for it, and no verb has to think of it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypedDict

from appliance.errors import ApplianceError, Busy, IntegrityError, KeyUnavailable
from appliance.events.event import Event, Refusal
from appliance.flows import catalog
from appliance.flows.home import Home, Operator
from appliance.ledger import proof
from appliance.ledger.heads import TreeHead
from appliance.ledger.leaf import Actor
from appliance.ledger.ledger import Ledger
from appliance.ledger.transaction import Transaction
from appliance.names import visible
from appliance.policy.policy import Policy

LONGEST = 500
_SIGNED_WITHIN_S, _SIGNED_AGAIN_S = 60.0, 0.1


class ErrorFacts(TypedDict):
    """What an entry states of an error."""

    code: int
    error: str
    reason: str


@dataclass(frozen=True, slots=True)
class Desk:
    """An acting session.

    Attributes:
      home: where everything lies.
      ledger: the open ledger.
      actor: who acts.
      reason: why; sealed into the entries, like the actor's name.
    """

    home: Home
    ledger: Ledger
    actor: Actor
    reason: str = ""

    @staticmethod
    @contextmanager
    def open(home: Home, operator: Operator) -> Iterator[Desk]:
        """Sit down at a home's desk."""
        with home.ledger() as ledger:
            yield Desk(home, ledger, home.actor(operator), operator.reason)

    @property
    def policy(self) -> Policy:
        """The policy in force, as it is now."""
        return catalog.policy_in_force(self.ledger)

    @contextmanager
    def transact(self, policy_sha256: str | None = None) -> Iterator[Transaction]:
        """Write rows and the entries that cover them, all or nothing; what was written is signed on leaving.

        Args:
          policy_sha256: the policy under which it happens; stands in the leaf.
        """
        with self.ledger.transaction(self.actor, self.reason or None, policy_sha256) as tx:
            yield tx
        self._sign()

    def _sign(self) -> None:
        """Sign what was written. As it stands already, this waits for others longer than whoever would write."""
        deadline = time.monotonic() + _SIGNED_WITHIN_S
        while True:
            try:
                self.ledger.sign()
                return
            except Busy as busy:
                if time.monotonic() > deadline:
                    message = f"what was asked for is in the ledger, but not signed yet: {busy.message}"
                    raise Busy(message, hint="`appliance ledger sign` signs it", where=busy.where) from None
            time.sleep(_SIGNED_AGAIN_S)

    @contextmanager
    def decide(self, policy: Policy) -> Iterator[Transaction]:
        """Transact by a policy that was looked at before: nothing is written unless it is still in force.

        Raises:
          Busy: another one came into force meanwhile.
        """
        with self.transact(policy.digest) as tx:
            catalog.require_in_force(tx, policy)
            yield tx

    def record(self, event: Event, policy_sha256: str | None = None) -> int:
        """Write one entry, signed; its index."""
        with self.transact(policy_sha256) as tx:
            return tx.append(event)

    def prove(self, index: int) -> bytes:
        """Prove an entry: the evidence for which the key agent releases a key. The agent follows the log to it first.

        Raises:
          KeyUnavailable: the store is sealed, or was unlocked for another ledger than this.
        """
        return proof.evidence(self.ledger.prove(index, self._lead_agent()), self.ledger.leaf(index))

    def _lead_agent(self) -> TreeHead:
        """Prove to the key agent that the anchored tree head continues the newest one that it knows."""
        agent, places = self.home.agent(), self.home.places
        while True:
            known, head = agent.follow(places), self.ledger.anchored()
            if known > head.size:
                raise IntegrityError(
                    f"the key agent has seen {known} entries of the ledger, its anchor has {head.size}"
                )
            try:
                agent.follow(places, self.ledger.prove_consistency(known, head))
                return head
            except KeyUnavailable:
                if (known, head) == (agent.follow(places), self.ledger.anchored()):  # else others were faster
                    raise

    @contextmanager
    def refusals(
        self, event: type[Refusal], *kinds: type[ApplianceError], policy_sha256: str | None = None
    ) -> Iterator[None]:
        """Record what the block is refused with, and let the error pass.

        Args:
          event: the event, such as `RunRefused`.
          kinds: errors that are recorded; others pass without an entry.
          policy_sha256: the policy in force, where it was looked at.
        """
        try:
            yield
        except kinds as refusal:
            self.record(event(**error_facts(refusal)), policy_sha256)
            raise


def error_facts(error: ApplianceError) -> ErrorFacts:
    """Say of an error what an entry states: exit status, class and message, which holds public values only.

    Its hint and its place, which may be a path or a line of private data, are not recorded. A message may quote a
    foreign file, so it is made visible and cut after `LONGEST` characters.
    """
    message = visible(error.message[: LONGEST + 1])
    reason = message if len(message) <= LONGEST else f"{message[: LONGEST - 3]}..."
    return {"code": error.exit_status, "error": type(error).__name__, "reason": reason}
