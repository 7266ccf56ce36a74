"""Sealed objects: what other rooms use. The format is specified in `docs/spec/store.md`.

`seal_records` and `seal_bytes` write, `open_records` and `open_bytes` read with the key, `scrub` checks without it.
"""

from __future__ import annotations

from appliance.store.opening import SealedRecords, open_bytes, open_records, scrub
from appliance.store.sealing import Sealed, seal_bytes, seal_records

__all__ = ["Sealed", "SealedRecords", "open_bytes", "open_records", "scrub", "seal_bytes", "seal_records"]
