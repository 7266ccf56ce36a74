"""What a conversion may have cost is an interval that few predictions cannot make short."""

from __future__ import annotations

import numpy as np
import pytest

from appliance.evaluate.predictions import Predictions, shift


def predictions(right: np.ndarray) -> Predictions:
    return Predictions(right.astype(np.int64), right, np.zeros(len(right)))


@pytest.mark.parametrize(("blocks", "places", "open_points"), [(4, 64, 1.44), (100, 200, 0.0184)])
def test_predictions_that_all_agree_leave_a_loss_open(blocks: int, places: int, open_points: float) -> None:
    same = predictions(np.zeros((blocks, places), dtype=np.bool_))
    found = shift(same, same)
    assert found.points == 0
    assert found.low == pytest.approx(-open_points, rel=0.01)
    assert found.high == -found.low


def test_blocks_that_differ_make_the_interval_longer() -> None:
    generator = np.random.default_rng(3)
    before = predictions(generator.random((50, 100)) < 0.5)
    after = predictions(generator.random((50, 100)) < 0.4)
    found = shift(before, after)
    assert found.low < -10 < found.high < 0
    assert found.high - found.low > 2
