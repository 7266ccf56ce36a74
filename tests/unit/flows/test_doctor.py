"""`doctor` on the machine's clock."""

from __future__ import annotations

import os
import time
from pathlib import Path

from appliance.flows.doctor import _clock


def test_a_clock_that_went_back_is_seen(tmp_path: Path) -> None:
    assert _clock(tmp_path).verdict == "ok"
    (tmp_path / "home.json").touch()
    assert _clock(tmp_path).verdict == "ok"
    later = time.time() + 3600
    os.utime(tmp_path / "home.json", (later, later))
    assert _clock(tmp_path).verdict == "warning"
