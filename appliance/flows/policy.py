"""`policy`: check, show, activate. The active policy is a row of the ledger's database, exact bytes and all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from appliance.errors import ArtefactMissing
from appliance.events.policy import PolicyActivated
from appliance.events.states import PolicyState
from appliance.flows import catalog
from appliance.flows.desk import Desk
from appliance.flows.home import Home, Operator
from appliance.ledger.rows import PolicyRow
from appliance.policy import shipped
from appliance.policy.policy import Policy, parse


@dataclass(frozen=True, slots=True, kw_only=True)
class Activated:
    """A policy that is now in force, and the one it replaced."""

    policy: Policy
    replaced: str | None


def load(name_or_path: str) -> Policy:
    """Load the policy in a file, or a shipped one by its name.

    Raises:
      ArtefactMissing: there is no such file.
      ConfigInvalid: it does not follow the schema.
    """
    path = Path(name_or_path)
    if name_or_path in shipped.names() and not path.exists():
        return parse(shipped.read(name_or_path), f"policies/{name_or_path}.yaml")
    try:
        return parse(path.read_bytes(), str(path))
    except OSError:
        names = ", ".join(shipped.names())
        raise ArtefactMissing(f"no policy file {name_or_path}", hint=f"give a path, or one of: {names}") from None


def activate_in(desk: Desk, policy: Policy) -> str | None:
    """Put `policy` in force; returns the name of the one it replaced."""
    with desk.transact(policy.digest) as tx:
        old = [row for row in tx.policies.list() if row.state == PolicyState.ACTIVE]
        for row in old:
            if row.sha256 != policy.digest:
                tx.policies.update(row, state=PolicyState.SUPERSEDED)
        known = tx.policies.find(policy.digest)
        if known is None:
            text, state = policy.text.decode(), PolicyState.ACTIVE
            tx.policies.add(PolicyRow(sha256=policy.digest, name=policy.name, text=text, state=state))
        else:
            tx.policies.update(known, state=PolicyState.ACTIVE)
        tx.append(PolicyActivated(name=policy.name, sha256=policy.digest))
    return old[0].name if old else None


def activate(home: Home, policy: Policy, operator: Operator) -> Activated:
    """Put `policy` in force: from now on ingest and training must fit inside it."""
    with Desk.open(home, operator) as desk:
        return Activated(policy=policy, replaced=activate_in(desk, policy))


def show(home: Home) -> Policy:
    """Read the policy in force."""
    with home.reader() as ledger:
        return catalog.policy_in_force(ledger)
