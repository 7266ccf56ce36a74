"""policy.yaml: the shipped examples, the digest, the schema, and errors that help."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from appliance.errors import ArtefactMissing, ConfigInvalid, PolicyDenied
from appliance.policy import policy, shipped
from appliance.policy.policy import ClassRules
from appliance.policy.schema import policy_schema

POLICIES = Path(__file__).parents[3] / "policies"
DEFAULT = shipped.read("default")


@pytest.mark.parametrize("name", ["default", "demo", "finance", "health"])
def test_shipped_policies_parse_and_have_a_reason_for_every_rule(name: str) -> None:
    data = shipped.read(name)
    found = policy.parse(data, f"{name}.yaml")
    assert found.name == name
    assert found.text == data
    assert found.digest == hashlib.sha256(data).hexdigest()
    assert set(found.classes["default"].model_fields_set) == set(ClassRules.model_fields)
    lines = data.decode().splitlines()
    keys = [n for n, line in enumerate(lines) if re.match(r"    (max|min)_\w+:", line)]
    assert all(lines[n - 1].strip().startswith("#") for n in keys)


def test_shipped_policies_are_ordered_by_strictness() -> None:
    health, finance, default = (policy.parse(shipped.read(n), n).rules() for n in ("health", "finance", "default"))
    assert health.max_epsilon < finance.max_epsilon < default.max_epsilon
    assert health.min_noise_multiplier > finance.min_noise_multiplier > default.min_noise_multiplier
    assert health.unit.kinds == ("subject",)
    for rules in (health, finance, default):
        assert 1 / (100 * rules.min_units) <= rules.max_delta
        assert not rules.public_data


def test_unknown_shipped_policy() -> None:
    assert shipped.names() == ("default", "demo", "finance", "health")
    for name in ("nothing", "../pyproject"):
        with pytest.raises(ArtefactMissing):
            shipped.read(name)


def test_any_byte_changes_the_digest() -> None:
    before, after = policy.parse(DEFAULT, "a"), policy.parse(DEFAULT + b"# more\n", "a")
    assert before.classes == after.classes
    assert before.digest != after.digest
    assert before == policy.parse(DEFAULT, "b")


def test_checked_in_schema_is_current() -> None:
    assert (POLICIES / "policy.schema.json").read_text() == policy_schema()
    assert "schema" in json.loads(policy_schema())["required"]


def line_of(text: str) -> int:
    return DEFAULT.decode()[: DEFAULT.decode().index(text)].count("\n") + 1


WRONG = [
    ("    max_epsilon: 8", "    max_epsilom: 8", "unknown key 'max_epsilom'", "did you mean 'max_epsilon'?"),
    ("      kinds:", "      kind:", "unknown key 'kind'", "did you mean 'kinds'?"),
    ("    max_epsilon: 8", "    max_epsilon: -1", "greater than 0", ""),
    ("    max_epsilon: 8", "    max_epsilon: 1e999", "finite", ""),
    ("    max_epsilon: 8", "    max_epsilon: '8'", "valid number", ""),
    ("    max_delta: 2.0e-5", "    max_delta: 1", "less than 1", ""),
    ("    min_units: 500", "    min_units: 500.5", "valid integer", ""),
    ("    min_units: 500", "    min_units: true", "valid integer", ""),
    ("    bases: any", "    bases: []", "at least 1 item", ""),
    ("    bases: any", "    bases: [abc]", "classes.default.bases", ""),
    ("      kinds: [record, subject]", "      kinds: [row]", "'record' or 'subject'", ""),
    ("schema: 1", "schema: 2", "should be 1", ""),
    ("name: default", "name: two words", "pattern", ""),
]


@pytest.mark.parametrize(("old", "new", "message", "hint"), WRONG)
def test_errors_name_line_and_key(old: str, new: str, message: str, hint: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        policy.parse(DEFAULT.replace(old.encode(), new.encode(), 1), "p.yaml")
    assert message in caught.value.message
    assert caught.value.hint == hint
    assert caught.value.where == f"p.yaml:{line_of(old)}"


def test_missing_keys() -> None:
    with pytest.raises(ConfigInvalid, match="missing here: 'max_epsilon'"):
        policy.parse(DEFAULT.replace(b"    max_epsilon: 8", b""), "p")
    with pytest.raises(ConfigInvalid, match="no class 'default'"):
        policy.parse(DEFAULT.replace(b"  default:", b"  other:"), "p")
    with pytest.raises(ConfigInvalid, match="'schema' is missing"):
        policy.parse(DEFAULT.replace(b"schema: 1\n", b""), "p")
    with pytest.raises(ConfigInvalid, match="keys and values"):
        policy.parse(b"- a\n", "p")


def test_an_unknown_class_is_denied_and_never_falls_back() -> None:
    found = policy.parse(DEFAULT, "p")
    assert found.rules("default") == found.rules()
    with pytest.raises(PolicyDenied):
        found.rules("patients")
