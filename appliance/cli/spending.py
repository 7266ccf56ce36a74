"""How a lifetime budget is printed: what is spent, by which rule it is counted, at which delta."""

from __future__ import annotations

import math
from typing import Any

from appliance.flows.budget import Account, Afforded
from appliance.flows.home import Home
from appliance.flows.run.listing import state_of
from appliance.privacy.lifetime import Cap, Spent


def afforded_document(afforded: Afforded) -> dict[str, Any]:
    """Describe for --json what a run or an evaluation takes of the lifetime budget."""
    return {
        "epsilon_before": afforded.before.epsilon,
        "epsilon_after": afforded.after.epsilon,
        "cap": afforded.cap.epsilon,
        "lifetime_delta": afforded.cap.delta,
        "counted_by": afforded.after.rule,
    }


def afforded_line(afforded: Afforded) -> str:
    """Say it in a line."""
    before, after, cap = afforded.before, afforded.after, afforded.cap
    return (
        f"epsilon {before.epsilon:.3f} spent, {after.epsilon:.3f} with this, cap {cap.epsilon:g} "
        f"at delta {cap.delta:.3g}, counted by {_rule(after, cap)}"
    )


def account_document(home: Home, account: Account) -> dict[str, Any]:
    """Describe the account of a dataset for --json; null where nothing finite can be said."""
    cap, reserved = account.cap, account.reserved
    return {
        "dataset": account.dataset.id,
        "name": account.dataset.name,
        "unit": cap.unit.model_dump(mode="json"),
        "cap_epsilon": cap.epsilon,
        "cap_delta": cap.delta,
        "spent_epsilon": _finite(account.spent.epsilon),
        "reserved_epsilon": _finite(reserved.epsilon),
        "counted_by": reserved.rule,
        "by_distributions": _finite(reserved.by_distributions),
        "by_filter": _finite(reserved.by_filter),
        "filter_order": cap.order,
        "filter_share": _finite(reserved.share),
        "runs": [
            {
                "run": run.id,
                "state": state_of(home, run),
                "charged": run.epsilon_charged,
                "reserved": run.epsilon_reserved,
            }
            for run in account.runs
        ],
        "evaluations": [
            {"evaluation": row.id, "run": row.run_id, "state": row.state, "charged": row.epsilon}
            for row in account.evaluations
        ],
    }


def account_lines(home: Home, account: Account) -> list[str]:
    """Show the account of a dataset: a gauge, both readings of it, and what was charged."""
    lines = [f"{account.dataset.name} ({account.dataset.id})", f"  {_gauge(account)}", *_readings(account)]
    if account.reserved.epsilon > account.spent.epsilon:
        lines.append(f"  spent {account.spent.epsilon:.3f}; the difference is reserved by runs that are not settled")
    lines += [f"  {run.id}  {state_of(home, run)}  charged {run.epsilon_charged or '-'}" for run in account.runs]
    lines += [f"  {row.id} of {row.run_id}  {row.state}  charged {row.epsilon}" for row in account.evaluations]
    return lines


def _readings(account: Account) -> list[str]:
    spent, cap = account.reserved, account.cap
    if spent.rule == "mixed units":
        return [
            "  closed: data of the same people were used with another unit of privacy, and what a record lost says",
            "  nothing of what a person lost; go on with the dataset that was used, or with data of other people",
        ]
    if not spent.epsilon:
        return []
    used = f"{spent.share:.0%} used of what it admits" if spent.share <= 1 else "it admits nothing more"
    lines = [f"  by the Rényi filter of order {cap.order:g}: epsilon {spent.by_filter:.3f}, {used}"]
    if spent.by_distributions is not None:
        lines.append(f"  by privacy loss distributions: epsilon {spent.by_distributions:.3f}")
    why = {
        "filter": "  the filter decides: it holds whatever was chosen after seeing earlier outputs",
        "distributions": "  the distributions decide: all of this was fixed before anything came out",
    }
    return [*lines, why[spent.rule]]


def _gauge(account: Account, width: int = 30) -> str:
    spent, cap = account.reserved.epsilon, account.cap
    filled = min(width, round(width * min(1.0, spent / cap.epsilon)))
    bar = f"[{'#' * filled}{'.' * (width - filled)}]"
    return f"{bar} epsilon {_number(spent)} of {cap.epsilon:g} at delta {cap.delta:.3g}"


def _rule(spent: Spent, cap: Cap) -> str:
    return f"the Rényi filter of order {cap.order:g}" if spent.rule == "filter" else "privacy loss distributions"


def _number(epsilon: float) -> str:
    return f"{epsilon:.3f}" if math.isfinite(epsilon) else "without bound"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
