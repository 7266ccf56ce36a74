"""Runs scripts in processes of their own: what the sandbox takes away cannot be given back to the test process."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable

import pytest

PRELUDE = """
import os, sys, socket, ctypes, threading, subprocess
from pathlib import Path
from appliance.errors import IsolationViolated
from appliance.isolation import kernel, landlock, process, sandbox, seccomp
from appliance.jobs.job import IsolationSpec

REQUIRED = IsolationSpec(network="required", files="required")

def refused(call):
    try:
        call()
    except OSError as error:
        return error.errno
    return 0
"""


@pytest.fixture
def prelude() -> str:
    """What every script begins with."""
    return PRELUDE


@pytest.fixture
def run() -> Callable[..., str]:
    """`run(body, *arguments)`: run a script after the prelude, return what it prints; its failure is the test's."""

    def script(body: str, *arguments: object) -> str:
        command = [sys.executable, "-c", PRELUDE + textwrap.dedent(body), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return script
