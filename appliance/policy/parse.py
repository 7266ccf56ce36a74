"""From YAML bytes to a checked value, with errors that name the file, the line and the key."""

from __future__ import annotations

import difflib
import json
from typing import Any, TypeVar

from pydantic import ValidationError

from appliance.errors import ConfigInvalid
from appliance.policy.yaml import Document, Path, load, show
from appliance.values import Value

V = TypeVar("V", bound=Value)


def parse_value(model: type[V], data: bytes, where: str) -> V:
    """Read `data` as YAML and validate it as `model`, whose first key must be `schema`.

    Raises:
      ConfigInvalid: with `where` = `file:line`, and a hint naming the nearest known key where one is unknown.
    """
    document = load(data, where)
    if not isinstance(document.value, dict):
        raise ConfigInvalid("the file does not hold keys and values", where=document.place(()))
    if "schema" not in document.value:
        raise ConfigInvalid("the key 'schema' is missing", hint="add: schema: 1", where=document.place(()))
    try:
        # By way of JSON, since strict validation takes lists for tuples only from there.
        return model.model_validate_json(json.dumps(document.value), by_alias=True, by_name=False)
    except ValidationError as error:
        raise _explain(error, document, model) from None


def _explain(error: ValidationError, document: Document, model: type[Value]) -> ConfigInvalid:
    """Say the first problem of a file. Unknown keys come first: a typing error also makes a key missing."""
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    problems.sort(
        key=lambda problem: (problem["type"] != "extra_forbidden", document.lines[document.find_known(problem["loc"])])
    )
    path = document.find_known(problems[0]["loc"])
    same = [problem for problem in problems if document.find_known(problem["loc"]) == path]
    if same[0]["type"] == "extra_forbidden":
        return _unknown_key(path, document, model)
    missing = [f"'{problem['loc'][-1]}'" for problem in same if problem["type"] == "missing"]
    sentences = " or ".join(dict.fromkeys(_sentence(problem) for problem in same))
    message = f"missing here: {', '.join(missing)}" if missing else sentences
    name = ".".join(show(str(part)).strip("'") for part in path)
    return ConfigInvalid(f"{name}: {message}" if name else message, where=document.place(path))


def _sentence(problem: Any) -> str:
    text = str(problem["msg"]).removeprefix("Value error, ")
    return text[:1].lower() + text[1:]


def _unknown_key(path: Path, document: Document, model: type[Value]) -> ConfigInvalid:
    key = str(path[-1])
    allowed = _keys_at(model.model_json_schema(), path[:-1])
    near = difflib.get_close_matches(key, allowed, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(sorted(allowed))}"
    return ConfigInvalid(f"unknown key {show(key)}", hint=hint, where=document.place(path))


def _keys_at(root: dict[str, Any], path: Path) -> list[str]:
    """List the keys that the JSON schema `root` allows at `path`."""
    nodes = [root]
    for part in path:
        nodes = [child for node in nodes for child in _children(root, node, part)]
    return [key for node in nodes for key in node.get("properties", {})]


def _children(root: dict[str, Any], node: dict[str, Any], part: str | int) -> list[dict[str, Any]]:
    child = node.get("items") if isinstance(part, int) else node.get("properties", {}).get(part)
    # A dict with a pattern for its keys, such as `classes`, is written as patternProperties.
    child = child or next(iter(node.get("patternProperties", {}).values()), None)
    choices = child.get("anyOf", [child]) if isinstance(child, dict) else []
    return [root["$defs"][choice["$ref"].rsplit("/", 1)[-1]] if "$ref" in choice else choice for choice in choices]
