"""An entry of the ledger for rooms that do not see the ledger."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedEvent:
    """An entry of the ledger as reports and bundles see it: public values only.

    Attributes:
      index: place in the log.
      type: kind of event.
      time: RFC 3339, UTC.
      subject: id of what the event is about.
      policy_sha256: the policy in force.
      software: version and source digest of the software that wrote it.
      facts: the facts of the event, as in its leaf.
    """

    index: int
    type: str
    time: str
    subject: str | None
    policy_sha256: str | None
    software: dict[str, str]
    facts: dict[str, Any]
