"""`python -m appliance.policy.schema` prints the JSON schema of policy files, for editors that check while typing."""

from __future__ import annotations

import json
import sys

from appliance.policy.policy import Policy


def policy_schema() -> str:
    """Write the JSON schema of policy.yaml, as text that is the same on every machine."""
    schema = Policy.model_json_schema(by_alias=True)
    schema["required"] = sorted({"schema", *schema["required"]})
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    sys.stdout.write(policy_schema())
