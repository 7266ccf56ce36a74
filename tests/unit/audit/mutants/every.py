"""All faults: importing this registers them."""

from __future__ import annotations

from tests.unit.audit.mutants import accounts, clip, loops, noise, ranks, repeats, resume, sampling, told, units, unseen
from tests.unit.audit.mutants.registry import MUTANTS, Mutant

ROOMS = (noise, repeats, clip, units, sampling, loops, told, resume, ranks, accounts, unseen)

__all__ = ["MUTANTS", "ROOMS", "Mutant"]
