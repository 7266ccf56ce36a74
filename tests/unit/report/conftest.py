"""The run that the tests of reports tell."""

from __future__ import annotations

import pytest

from tests.unit.report.story import WHOLE, Story, build


@pytest.fixture
def story() -> Story:
    """A run that finished well, with a self-test, a mark and an evaluation, after a failed run on the same data."""
    return build(WHOLE)
