"""Refusals as entries of the ledger: with which error, and why; signed before anything else happens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypedDict

from appliance.errors import ApplianceError
from appliance.events.event import Refusal
from appliance.ledger.leaf import Actor
from appliance.ledger.ledger import Ledger

LONGEST = 500


class ErrorFacts(TypedDict):
    """What an entry states of an error."""

    code: int
    error: str
    reason: str


@contextmanager
def refusals_recorded(
    ledger: Ledger, actor: Actor, event: type[Refusal], *kinds: type[ApplianceError], policy_sha256: str | None = None
) -> Iterator[None]:
    """Record what the block is refused with, sign the entry, and let the error pass.

    Args:
      ledger: the open ledger.
      actor: who was refused.
      event: the event, such as `RunRefused`.
      kinds: errors that are recorded; others pass without an entry.
      policy_sha256: the policy in force, where it was looked at.
    """
    try:
        yield
    except kinds as refusal:
        with ledger.transaction(actor, policy_sha256=policy_sha256) as tx:
            tx.append(event(**error_facts(refusal)))
        ledger.sign()
        raise


def error_facts(error: ApplianceError) -> ErrorFacts:
    """Say of an error what an entry states: exit status, class and message, which holds public values only.

    Its hint and its place, which may be a path or a line of private data, are not recorded. A message may quote a
    foreign file, so it is cut after `LONGEST` characters.
    """
    said = error.message if len(error.message) <= LONGEST else f"{error.message[: LONGEST - 3]}..."
    reason = said.encode(errors="backslashreplace").decode()
    return {"code": error.exit_status, "error": type(error).__name__, "reason": reason}
