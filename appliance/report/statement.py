"""`privacy_statement.json`: what is guaranteed, for programs. Each value has a name and the entry in which it stands.

`wording.txt` lists each name with the places that it may stand for; the verifier refuses any other.
"""

from __future__ import annotations

from typing import Any

import rfc8785

from appliance.report.evidence import Evidence
from appliance.report.figures import Figure, fact, items, states
from appliance.report.guarantee import odds

SCHEMA = "appliance.privacy/2"
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
LIFETIME = ("lifetime_delta", "filter_order", "counted_by")
"""Stated since the lifetime is counted by a filter."""
RUN = {"run": "run_id", "dataset": "dataset_id", "base_model": "model_id"}
MODEL = {"base_model_digest": "sha256", "license": "licence"}
MARK = {"watermark_score": "score", "watermark_p_bound": "p_bound"}
EVALUATION = {"evaluation_epsilon": "epsilon_charged", "evaluation_delta": "delta"}
GAIN = {"gain": "gain_nat", "gain_low": "low", "gain_high": "high"}


def privacy_statement(evidence: Evidence) -> bytes:
    """Write the statement as canonical JSON (RFC 8785) with a newline."""
    document: Any = {
        "schema": SCHEMA,
        "run_id": evidence.run_id,
        "state": evidence.state,
        "mechanism": "Poisson-subsampled Gaussian (DP-SGD) on LoRA parameters",
        "released": "the adapter and every noised sum it was computed from" if evidence.settled else "nothing",
        "values": [_value(name, figure) for name, figure in named_figures(evidence)],
        "ledger": {"origin": evidence.head.origin, "tree_size": evidence.head.size, "root": evidence.head.root},
    }
    return rfc8785.dumps(document) + b"\n"


def named_figures(evidence: Evidence) -> list[tuple[str, Figure]]:
    """List the figures of the statement under their names; the model card shows some of them."""
    reserved, ending = evidence.reserved, evidence.ending
    found = [(name, fact(reserved, f"/plan/{key}")) for name, key in PLAN.items()]
    found += [("phases", fact(reserved, "/plan/phases"))] if states(reserved, "/plan/phases") else []
    found += [(name, fact(reserved, f"/{key}")) for name, key in (*BUDGET.items(), *RUN.items())]
    found += [(name, fact(reserved, f"/{name}")) for name in LIFETIME if states(reserved, f"/{name}")]
    if ending is not None:
        found += [(name, fact(ending, f"/{key}")) for name, key in SPENT.items()]
        bound = odds(ending)
        found += [("odds_bound", bound)] if bound else []
    return [
        *found,
        *_from(evidence, "model.imported", MODEL),
        *_from(evidence, "watermark.embedded", MARK),
        *_gain(evidence),
    ]


def _from(evidence: Evidence, type_: str, names: dict[str, str]) -> list[tuple[str, Figure]]:
    event = evidence.last(type_)
    return [(name, fact(event, f"/{key}")) for name, key in names.items()] if event else []


def _gain(evidence: Evidence) -> list[tuple[str, Figure]]:
    """List what the evaluation cost, and what its last comparison found: that of the adapter to be released."""
    event = evidence.last("evaluation.settled")
    rows = [row.pointer for _, row in items(event, "/comparisons")] if event else []
    found = _from(evidence, "evaluation.settled", EVALUATION)
    return found + [(name, fact(event, f"{rows[-1]}/{key}")) for name, key in GAIN.items()] if event and rows else found


def _value(name: str, figure: Figure) -> dict[str, Any]:
    return {"name": name, "entry": figure.entry, "fact": figure.pointer, "value": figure.value}
