"""All faults: importing this registers them."""

from __future__ import annotations

from tests.unit.audit.mutants import accounts, clip, loops, noise, ranks, resume, sampling, units, unseen
from tests.unit.audit.mutants.registry import MUTANTS, Mutant

ROOMS = (noise, clip, units, sampling, loops, resume, ranks, accounts, unseen)

__all__ = ["MUTANTS", "ROOMS", "Mutant"]
