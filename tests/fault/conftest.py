"""The command line as the end-to-end tests drive it, here to be killed."""

from __future__ import annotations

from tests.e2e.conftest import appliance, planned, sealed, template

__all__ = ["appliance", "planned", "sealed", "template"]
