"""docs/models.md says of every architecture what is true."""

from __future__ import annotations

import pytest

from tests import architectures

ALL = sorted(architectures.kinds())


def test_the_matrix_lists_every_causal_language_model_of_transformers() -> None:
    assert sorted(architectures.read_rows()) == ALL


@pytest.mark.parametrize("kind", ALL)
def test_the_matrix_is_true(kind: str, request: pytest.FixtureRequest) -> None:
    if kind not in architectures.HANDFUL and not request.config.getoption("--stress"):
        pytest.skip("only with --stress")
    assert architectures.row(kind, architectures.outcomes(kind)) == architectures.read_rows()[kind]
