"""How much a foreign model may make a library build, by what its files hold. Nothing has been built by then.

A configuration of a few hundred bytes can ask for a million layers, each of which takes time and memory before anybody
notices that there are no weights for it. So its counts are held against the tensors that are there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from appliance.errors import DataInvalid

MAX_TENSORS = 1 << 18  # the largest models of today, with an expert a tensor, have some 100,000
_LAYERS = re.compile(r"(?:^|[_.])(?:layers?|blocks?|depths?|stages?)(?:_count)?$")
_EXPERTS = re.compile(r"(?:^|[_.])experts?(?:_count)?$")


def check_extent(configuration: Mapping[str, Any], tensors: int, where: str) -> None:
    """Refuse a configuration that asks for more than the tensors can fill.

    Args:
      configuration: of the model, or the metadata of a GGUF file; looked at in any depth.
      tensors: how many there are in its files.
      where: the file that the configuration is in.

    Raises:
      DataInvalid: more tensors than any model has, more layers than tensors, or that many experts in all layers.
    """
    if tensors > MAX_TENSORS:
        raise DataInvalid(f"{tensors} tensors are more than any real model has", where=where)
    layers = _largest(configuration, _LAYERS)
    if layers > tensors:
        raise DataInvalid(f"{layers} layers are configured, and there are {tensors} tensors in all", where=where)
    if layers * _largest(configuration, _EXPERTS) > MAX_TENSORS:
        raise DataInvalid("more experts are configured than any real model has", where=where)


def _largest(configuration: Mapping[str, Any], named: re.Pattern[str]) -> int:
    return max(_counts(configuration, named), default=0)


def _counts(configuration: Mapping[str, Any], named: re.Pattern[str]) -> Iterator[int]:
    pending: list[tuple[str, Any]] = [("", configuration)]
    while pending:
        key, value = pending.pop()
        if isinstance(value, Mapping):
            pending.extend(value.items())
        elif isinstance(value, list):
            pending.extend((key, item) for item in value)
        elif isinstance(value, int) and named.search(key):
            yield value
