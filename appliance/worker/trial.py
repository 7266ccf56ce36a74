"""Trying an imported architecture, within a time limit: how it can be trained, in each precision, or why not."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.errors import ApplianceError, DataInvalid, WillNotFit

if TYPE_CHECKING:
    from appliance.models.twin import Precision

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "nf4", "int8")
SECONDS = 60
"""For each precision; a stranger's configuration must not keep an import busy."""


class _TooLong(BaseException):
    """Not an `Exception`: nothing on the way up may take it for a failure of the model."""


def try_architecture(directory: Path, parameters: int, seconds: int = SECONDS) -> dict[str, str]:
    """Try how an imported model can be trained, on itself if it is small, else on a small random twin.

    Args:
      directory: the imported model.
      parameters: how many it has.
      seconds: after which a precision counts as not tried, as where memory does not suffice.

    Returns:
      For each precision that was tried an empty string, or why it cannot be trained exactly. The quantised ones are
      not tried where nothing else works, and nothing is tried where a large model has no twin that runs.

    Raises:
      DataInvalid: it can be trained in no precision.
    """
    from appliance.models.twin import choose

    found: dict[str, str] = {}
    try:
        with _at_most(seconds):
            model = choose(directory, parameters)
    except (_TooLong, WillNotFit):
        model = None
    for precision in PRECISIONS if model is not None else ():
        if len(found) == 2 and all(found.values()):
            break
        try:
            with _at_most(seconds):
                found[precision] = _try(model, precision)
        except (_TooLong, WillNotFit):
            continue
    if found and all(found.values()):
        hint = "docs/models.md lists what can be trained"
        raise DataInvalid(f"this model cannot be trained: {found[min(found)]}", hint=hint, where="config.json")
    return found


def _try(model: Any, precision: Precision) -> str:
    from appliance.models.twin import derive
    from appliance.train.trial import find_obstacle

    try:
        derived = derive(model, precision)
    except WillNotFit:
        raise
    except ApplianceError as refusal:
        return refusal.message
    return find_obstacle(derived, "bfloat16" if precision == "bfloat16" else "float32")


@contextmanager
def _at_most(seconds: int) -> Iterator[None]:
    """Raise `_TooLong` in the block after so many seconds of the clock."""

    def stop(*_: Any) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, stop)
    left, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left)
        signal.signal(signal.SIGALRM, before)
