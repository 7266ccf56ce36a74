"""The small ledger of the ledger's own tests, here for the flows."""

from __future__ import annotations

from tests.unit.ledger.conftest import actor, clock, config, dataset, ledger

__all__ = ["actor", "clock", "config", "dataset", "ledger"]
