"""RFC 8785 canonical JSON of the values a ledger holds: text, whole numbers, booleans, null, lists and objects.

orjson with sorted keys writes exactly that for such values: keys are ASCII, so sorting by UTF-8 and by UTF-16 agree;
numbers are whole and below 2^53. The property tests compare with the rfc8785 package, which is forty times slower.
"""

from __future__ import annotations

from typing import Any

import orjson

from appliance.events.event import LeafInvalid as LeafInvalid
from appliance.names import is_unruly

_OPTIONS = orjson.OPT_SORT_KEYS | orjson.OPT_STRICT_INTEGER
MAX_LEAF = 65_535  # a C2SP entry bundle has a 16-bit length


def canonical(value: Any) -> bytes:
    """Encode a checked value canonically. Raises `LeafInvalid` (naming no content) when it cannot be encoded.

    Names are in order, nothing stands between them, and a number that is not whole is text:

        >>> canonical({"steps": 20, "epsilon": "8.0", "passed": True})
        b'{"epsilon":"8.0","passed":true,"steps":20}'
        >>> canonical({"epsilon": 8.0})
        Traceback (most recent call last):
        appliance.events.event.LeafInvalid: a value is a float, which cannot stand in the ledger
    """
    check(value)
    return encode(value)


def encode(value: Any) -> bytes:
    """Encode canonically a value whose parts have been checked already."""
    try:
        return orjson.dumps(value, option=_OPTIONS)
    except orjson.JSONEncodeError:
        raise LeafInvalid("a value for the ledger cannot be encoded") from None


def check(value: Any, where: str = "a value") -> None:
    """Raise `LeafInvalid` unless `value` is made of public JSON types only; floats and `Private` are refused."""
    kind = type(value)
    if kind in (str, int, bool) or value is None:
        return
    if kind is dict:
        for key, item in value.items():
            if type(key) is not str or not key.isascii():
                raise LeafInvalid(f"{where} has a name that is not plain text")
            check(item, where)
    elif kind in (list, tuple):
        for item in value:
            check(item, where)
    else:
        raise LeafInvalid(f"{where} is a {kind.__name__}, which cannot stand in the ledger")


def check_texts(value: Any, where: str) -> None:
    """Raise `LeafInvalid` for a text with control or other unseen characters, in a value that was checked.

    Whatever comes from outside was looked at where it came in (`appliance.names`); this is for what was forgotten.
    """
    if type(value) is str:
        if is_unruly(value):
            raise LeafInvalid(f"{where} has a text with characters that cannot be shown")
    elif type(value) is dict:
        check_texts([*value, *value.values()], where)
    elif type(value) in (list, tuple):
        for item in value:
            check_texts(item, where)
