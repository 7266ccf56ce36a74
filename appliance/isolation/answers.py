"""Values that pass between code that is judged and the test that judges it: data of Python's own kinds, nothing else.

What code returns may be an object that equals everything, or whose methods run where it is compared. So only a
description crosses, from which an equal value is made anew on the other side.
"""

from __future__ import annotations

import json
from typing import Any

LONGEST = 1 << 20  # bytes of a description
_DEEPEST = 50
_PLAIN = (bool, int, str, type(None))


class NoData(Exception):
    """A value that is no data, or a description that describes nothing."""


def describe(value: Any) -> bytes:
    """Describe a value in one line.

    >>> describe((1, "a", {2: None}))
    b'["tuple", [1, "a", ["dict", [[2, null]]]]]'

    Raises:
      NoData: there is something else in it.
    """
    data = json.dumps(_describe(value, 0)).encode()
    if len(data) > LONGEST:
        raise NoData
    return data


def _describe(value: Any, depth: int) -> Any:
    kind = type(value)
    if depth > _DEEPEST:
        raise NoData
    if kind in _PLAIN:
        return value
    if kind is float:
        return ["float", value.hex()]
    if kind is complex:
        return ["complex", [value.real.hex(), value.imag.hex()]]
    if kind is bytes:
        return ["bytes", value.hex()]
    if kind in (list, tuple, set, frozenset):
        return [kind.__name__, [_describe(one, depth + 1) for one in value]]
    if kind is dict:
        return ["dict", [[_describe(key, depth + 1), _describe(one, depth + 1)] for key, one in value.items()]]
    raise NoData


def build(data: bytes) -> Any:
    """Make the value that was described.

    >>> build(describe((1, "a", {2: None, 3: {0.1}})))
    (1, 'a', {2: None, 3: {0.1}})

    Raises:
      NoData: nothing is described.
    """
    try:
        return _build(json.loads(data), 0)
    except (ValueError, TypeError, KeyError, RecursionError):
        raise NoData from None


_MAKERS = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}


def _build(found: Any, depth: int) -> Any:
    if type(found) in _PLAIN:
        return found
    kind, parts = found
    if depth > _DEEPEST:
        raise NoData
    if kind == "float":
        return float.fromhex(parts)
    if kind == "complex":
        return complex(float.fromhex(parts[0]), float.fromhex(parts[1]))
    if kind == "bytes":
        return bytes.fromhex(parts)
    if kind == "dict":
        return {_build(key, depth + 1): _build(one, depth + 1) for key, one in parts}
    return _MAKERS[kind](_build(one, depth + 1) for one in parts)
