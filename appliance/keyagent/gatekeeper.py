"""Who gets a key: whoever shows a signed tree head and an inclusion proof of a leaf that says what it is used for.

The leaf must be of a kind that opens a key (`Event.opens`), and younger than the agent and than two minutes. It is
accepted once (once from each rank on this machine, where the leaf says how many there are), so evidence found in an old
run directory opens nothing. The tree head must be one that the agent has followed (`line.py`). To a node the key is
given only sealed, once, and only if the leaf names the node's key.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from appliance.errors import ApplianceError, KeyUnavailable
from appliance.events.catalog import catalog
from appliance.keyagent.line import Line
from appliance.ledger import proof
from appliance.store.agent import ReleaseRequest

FRESH_S = 120.0


@dataclass(slots=True)
class Gatekeeper:
    """Decides which requests for a dataset key are honoured. Its `check` is the agent's `authorise`.

    Attributes:
      line: the tree heads that count.
      since: size of the log when the agent started; evidence must be newer.
      clock: seconds since 1970.
      used: nonces that have opened a dataset, and the processes that showed them.
      sealed: nonces and nodes for which a key has been sealed.
    """

    line: Line
    since: int
    clock: Callable[[], float] = time.time
    used: dict[str, set[int]] = field(default_factory=dict)
    sealed: set[tuple[str, str]] = field(default_factory=set)

    def check(self, request: ReleaseRequest) -> None:
        """Return if the request is backed by a fresh, unused, signed leaf; raise `KeyUnavailable` otherwise."""
        leaf = self._prove_leaf(request.evidence)
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
            raise _refuse_used()
        shown_by.add(pid)

    def _use_for_node(self, facts: dict[str, Any], node: str) -> None:
        if node not in facts.get("nodes", []):
            raise KeyUnavailable("the evidence does not name this node")
        use = (str(facts.get("nonce")), node)
        if use in self.sealed:
            raise _refuse_used()
        self.sealed.add(use)

    def _prove_leaf(self, evidence: bytes) -> dict[str, Any]:
        try:
            proven = proof.verify_evidence(evidence, self.line.trusted)
        except ApplianceError:
            raise KeyUnavailable("the evidence does not prove a run of this log") from None
        self.line.require(proven.checkpoint)
        return proven.leaf


def _refuse_used() -> KeyUnavailable:
    return KeyUnavailable("the evidence has been used", hint="`appliance train resume RUN` makes fresh evidence")
