"""Whom a row is about: a column says it, or the place of its file."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from appliance.errors import DataInvalid, UsageError
from appliance.ingest.sameness import is_blank
from appliance.ingest.source import RowRefused

FROM_FILE = "file:"
"""Begins the key of a unit whose subject the file's place says."""

_WILD = {"*": "[^/]*", "?": "[^/]", "{subject}": "(?P<subject>[^/]+)"}
_HINT = "`directory`, or a pattern of file names with {subject} in it, such as '{subject}_*.txt'"


def subject_reader(key: str) -> Callable[[dict[str, Any], Path], str]:
    """Choose how the subject of a row is found: by the column `key`, or by its file if the key begins with `file:`.

    What it returns raises `RowRefused` for a row that names nobody.

    Raises:
      UsageError: a pattern does not have `{subject}` in it once.
    """
    if not key.startswith(FROM_FILE):
        return lambda fields, path: _in_column(fields, key)
    pattern = key.removeprefix(FROM_FILE)
    if pattern == "directory":
        return lambda fields, path: path.resolve().parent.name
    if pattern.count("{subject}") != 1:
        raise UsageError("the pattern of file names does not have {subject} in it once", hint=_HINT)
    expression = re.compile(
        "".join(_WILD.get(part, re.escape(part)) for part in re.split(r"(\*|\?|\{subject\})", pattern))
    )
    return lambda fields, path: _in_name(path, expression, pattern.count("/") + 1)


def check_names(paths: tuple[Path, ...], key: str) -> None:
    """See that the place of every file names a subject.

    Raises:
      DataInvalid: for the first that does not.
    """
    if key.startswith(FROM_FILE):
        find = subject_reader(key)
        for path in paths:
            try:
                find({}, path)
            except RowRefused as refused:
                raise DataInvalid(str(refused), hint=_HINT, where=str(path)) from None


def _in_name(path: Path, pattern: re.Pattern[str], depth: int) -> str:
    found = pattern.fullmatch("/".join(path.resolve().parts[-depth:]))
    if found is None or is_blank(found["subject"]):
        raise RowRefused("the file's name does not fit the pattern that names the subject")
    return found["subject"]


def _in_column(fields: dict[str, Any], column: str) -> str:
    value = fields.get(column)
    if type(value) is int:
        return str(value)
    if type(value) is not str or is_blank(value):
        raise RowRefused(f"column '{column}' names no subject")
    return value
