"""`status`: one look at the appliance. Works sealed, and never fails because one part is in a bad state."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from appliance.errors import ApplianceError
from appliance.flows import budget, catalog
from appliance.flows.home import Home
from appliance.flows.ledger import exposure
from appliance.flows.run.listing import INTERRUPTED, list_runs


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The state of an appliance, in public values."""

    home: str
    store: str
    policy: str
    database: str
    entries: int
    signed: int
    anchor: str
    rollback: str
    budgets: dict[str, str]
    runs: dict[str, int]
    interrupted: tuple[str, ...]
    epoch_keys: str
    disk_free_gib: int

    def document(self) -> dict[str, Any]:
        """Give it as a JSON value."""
        return asdict(self)

    def fields(self) -> Iterable[tuple[str, object]]:
        """Give it as lines for people."""
        yield "home", self.home
        yield "store", self.store
        yield "policy", self.policy
        yield "database", self.database
        yield "ledger", f"{self.entries} entries, signed up to {self.signed}"
        yield "anchor", self.anchor
        yield "rollback", self.rollback
        for name, spent in self.budgets.items():
            yield f"budget {name}", spent
        yield "runs", ", ".join(f"{n} {state}" for state, n in self.runs.items()) or "none"
        for run in self.interrupted:
            yield "interrupted", f"{run}: `appliance train resume {run}` or `appliance train abort {run}`"
        yield "epoch keys", self.epoch_keys
        yield "disk free", f"{self.disk_free_gib} GiB"


def status(home: Home) -> Status:
    """Collect the state. A database behind its anchor raises `IntegrityError`, since nothing else can be trusted."""
    agent = home.agent().status()
    with home.reader() as ledger:
        policy = catalog.policy_in_force(ledger)
        head = ledger.head()
        newest = next(ledger.entries(limit=1, newest_first=True))
        database = "; ".join(found.detail for found in ledger.findings()[:2])
    listed = list_runs(home)
    return Status(
        home=str(home.root),
        store=f"unsealed by {agent.who} until {agent.until}" if agent.state == "unsealed" else agent.state,
        policy=f"{policy.name} ({policy.digest[:16]})",
        database=database,
        entries=newest.index + 1,
        signed=head.size if head else 0,
        anchor=str(home.anchor),
        rollback=exposure(home, head.size if head else 0),
        budgets=_budgets(home),
        runs=dict(Counter(run.row.state.value for run in listed)),
        interrupted=tuple(run.row.id for run in listed if run.state == INTERRUPTED),
        epoch_keys="apart from the data"
        if home.config.epoch_keys
        else "on the data's device: erasing them shreds nothing",
        disk_free_gib=shutil.disk_usage(home.root).free >> 30,
    )


def _budgets(home: Home) -> dict[str, str]:
    try:
        return {
            account.dataset.name: f"epsilon {account.reserved.epsilon:.3f} of {account.cap.epsilon:g}"
            for account in budget.accounts(home)
        }
    except ApplianceError as failure:
        return {"": str(failure)}
