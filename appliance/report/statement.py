"""`privacy_statement.json`: what is guaranteed, for programs. Each value names the entry in which it stands."""

from __future__ import annotations

from typing import Any

import rfc8785

from appliance.report.evidence import Evidence
from appliance.report.figures import Figure, fact, plain, states
from appliance.report.guarantee import guarantee_sentence, odds

SCHEMA = "appliance.privacy/1"
PLAN = {
    "unit_of_privacy": "unit",
    "max_records_per_unit": "max_records",
    "neighbouring_relation": "neighbouring",
    "declared_units": "declared_units",
    "sample_rate": "sample_rate",
    "noise_multiplier": "noise_multiplier",
    "clip_norm": "max_grad_norm",
    "clipping": "clipping",
    "epsilon_reserved": "epsilon",
    "attempts_reserved": "attempts",
}
SPENT = {
    "epsilon": "epsilon_charged",
    "delta": "delta",
    "sampler_delta": "sampler_delta",
    "attempts": "attempts",
    "epsilon_pld": "epsilon_pld",
    "epsilon_prv": "epsilon_prv",
    "epsilon_rdp": "epsilon_rdp",
}
BUDGET = {"lifetime_epsilon_before": "epsilon_before", "lifetime_epsilon_after": "epsilon_after", "lifetime_cap": "cap"}


def privacy_statement(evidence: Evidence, version: str) -> bytes:
    """Write the statement as canonical JSON (RFC 8785) with a newline."""
    document: Any = {
        "schema": SCHEMA,
        "run_id": evidence.run_id,
        "state": evidence.state,
        "mechanism": "Poisson-subsampled Gaussian (DP-SGD) on LoRA parameters",
        "released": "the adapter and every noised sum it was computed from" if evidence.settled else "nothing",
        "sentence": plain(guarantee_sentence(evidence)),
        "values": [_value(name, figure) for name, figure in _figures(evidence)],
        "ledger": {"origin": evidence.head.origin, "tree_size": evidence.head.size, "root": evidence.head.root},
        "version": version,
    }
    return rfc8785.dumps(document) + b"\n"


def _figures(evidence: Evidence) -> list[tuple[str, Figure]]:
    reserved, ending = evidence.reserved, evidence.ending
    found = [(name, fact(reserved, f"/plan/{key}")) for name, key in PLAN.items()]
    found += [("phases", fact(reserved, "/plan/phases"))] if states(reserved, "/plan/phases") else []
    found += [(name, fact(reserved, f"/{key}")) for name, key in BUDGET.items()]
    found += [("dataset", fact(reserved, "/dataset_id")), ("base_model", fact(reserved, "/model_id"))]
    if ending is not None:
        found += [(name, fact(ending, f"/{key}")) for name, key in SPENT.items()]
        bound = odds(ending)
        found += [("odds_bound", bound)] if bound else []
    evaluated = evidence.last("evaluation.settled")
    if evaluated is not None:
        found += [("evaluation_epsilon", fact(evaluated, "/epsilon_charged"))]
        found += [("evaluation_delta", fact(evaluated, "/delta"))]
    return found


def _value(name: str, figure: Figure) -> dict[str, Any]:
    return {"name": name, "entry": figure.entry, "fact": figure.pointer, "value": figure.value}
