"""The command line as the end-to-end tests drive it, here to be killed."""

from __future__ import annotations

from tests.e2e.conftest import appliance, sealed, small_run, template, unkeyed_home

__all__ = ["appliance", "sealed", "small_run", "template", "unkeyed_home"]
