"""This machine's rates of arithmetic, in `machine.json` in the home. They are public: no data is looked at for them.

The CPU's is measured once. A GPU's is what the last self-test on it measured, in the dtype in which it computed: the
control plane loads no torch, so before the first self-test (which every first run makes) it is not known.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from appliance.estimate.pace import gigaflops
from appliance.files import write_atomic
from appliance.flows.home import Home
from appliance.jobs.selftest import GpuRate

SCHEMA = "appliance.machine/1"


def cpu(home: Home) -> float:
    """Find 10^9 floating-point operations per second of this machine's CPU; measured at the first call."""
    found = _read(home).get("gigaflops")
    if not isinstance(found, (int, float)):
        found = round(gigaflops(), 1)
        _keep(home, {**_read(home), "gigaflops": found})
    return float(found)


def gpu(home: Home, name: str, dtype: str) -> float | None:
    """Find 10^9 floating-point operations per second of a GPU of this name in this dtype; None if none was measured."""
    found = _gpus(home).get(f"{name} {dtype}")
    return float(found) if isinstance(found, (int, float)) else None


def keep(home: Home, rate: GpuRate | None) -> None:
    """Keep what a self-test measured, if it did."""
    if rate is not None:
        gpus = {**_gpus(home), f"{rate.name} {rate.dtype}": round(rate.gigaflops, 1)}
        _keep(home, {**_read(home), "gpus": gpus})


def _path(home: Home) -> Path:
    return home.root / "machine.json"


def _read(home: Home) -> dict[str, Any]:
    try:
        found = orjson.loads(_path(home).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _gpus(home: Home) -> dict[str, Any]:
    found = _read(home).get("gpus")
    return found if isinstance(found, dict) else {}


def _keep(home: Home, values: dict[str, Any]) -> None:
    with suppress(OSError):  # a home that may only be read
        write_atomic(_path(home), orjson.dumps({**values, "schema": SCHEMA}))
