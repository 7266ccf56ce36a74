"""How every process of this package is started: with this interpreter, isolated, in a directory that no worker writes.

Python looks for modules where it was started, in PYTHONPATH, and in the user's own site directory. A worker that was
taken over can leave an `orjson.py` in its run directory, and whatever was started there next would run it: before any
sandbox, with network and key. `-I` leaves only what is installed, and runs no `usercustomize`.
"""

from __future__ import annotations

import sys

DIRECTORY = "/"
"""Where processes are started. What is looked up by a relative name, such as a library, is not found there."""
_ISOLATED = ("-I", "-B")  # -I ignores PYTHONDONTWRITEBYTECODE too, so -B says it


def python(*arguments: str) -> list[str]:
    """Make the command of an isolated interpreter. Start it in `DIRECTORY`."""
    return [sys.executable, *_ISOLATED, *arguments]


def module(name: str, *arguments: str) -> list[str]:
    """Make the command that runs a module of this package, isolated. Start it in `DIRECTORY`."""
    return python("-m", name, *arguments)
