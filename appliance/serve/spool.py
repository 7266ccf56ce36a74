"""The spool: one line for every degraded answer, written before its first byte is sent; a flow reads it."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from appliance.files import write_all
from appliance.jobs.serve import Degraded
from appliance.values import to_json

Reason = Literal["fallback", "retried", "cut", "lost"]


class Spool:
    """An open spool. A line goes out in one write: who reads meanwhile sees whole lines, and perhaps part of one."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._number = 0

    def note(self, answer_id: str, reason: Reason, engine: str, failed: tuple[str, ...]) -> None:
        """Write a line."""
        at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = Degraded(number=self._number, at=at, id=answer_id, reason=reason, engine=engine, failed=failed)
        write_all(self._fd, to_json(line))
        self._number += 1

    def close(self) -> None:
        """Close it."""
        os.close(self._fd)
