"""Gates of a run file: what a run's model must hold when it is passed on. The entry of its reservation states them."""

from __future__ import annotations

from typing import Any

from appliance.events.run import RunReserved
from appliance.ledger.reading import LedgerReader
from appliance.policy.run_file import RunFile
from appliance.values import decimal


def state_gates(run: RunFile) -> dict[str, Any]:
    """State the gates as `run.reserved` states them; nothing for a run file that has none."""
    losses = {name: decimal(loss) for name, loss in run.gates.max_losses().items()}
    return {"max_loss": losses} if losses else {}


def find_gates(ledger: LedgerReader, run_id: str) -> dict[str, float]:
    """Find what each format may lose, in percentage points, as it was reserved: not as a file says it now."""
    reserved = next(ledger.entries(RunReserved, subject=run_id, limit=1), None)
    stated = {} if reserved is None else reserved.leaf["facts"].get("max_loss", {})
    return {name: float(loss) for name, loss in stated.items()}
