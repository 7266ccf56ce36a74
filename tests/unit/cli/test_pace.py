"""Progress: what is left is known after the first step, however slow steps are, and is said where no terminal is."""

from __future__ import annotations

import json

import pytest

from appliance.cli import render
from appliance.cli.pace import Pace, words
from appliance.cli.settings import Settings


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_steps_of_minutes_have_a_time_left_that_runs_down(clock: Clock) -> None:
    pace = Pace(clock)
    pace.update(0, 4)
    clock.now += 119
    assert pace.left is None
    clock.now += 1
    pace.update(1, 4)
    assert pace.left == 360
    clock.now += 60
    pace.update(1, 4)
    assert pace.left == 300
    clock.now += 600  # a step that takes longer than those before
    assert pace.left == 240
    pace.update(4, 4)
    assert pace.left == 0
    assert pace.elapsed == 780


def test_a_run_that_goes_on_is_measured_by_its_new_steps(clock: Clock) -> None:
    pace = Pace(clock)
    pace.update(50, 100)
    assert pace.left is None
    clock.now += 10
    pace.update(51, 100)
    assert pace.left == 490


def test_without_a_total_nothing_is_promised(clock: Clock) -> None:
    pace = Pace(clock)
    for done in (1000, 2000):
        clock.now += 1
        pace.update(done, 0)
    assert pace.left is None
    assert words(59.6) == "0:01:00"


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_without_a_terminal_a_line_is_said_now_and_then(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    bar = render._Lines("run_1", Pace(clock))
    bar.update(0, 3, "epsilon 0.00 of 2")
    for _ in range(100):  # steps of a tenth of a second
        clock.now += 0.01
        bar.update(1, 3, "epsilon 0.50 of 2")
    (first,) = lines(capsys)
    assert first["done"] == 0
    for _ in range(1200):  # one of two minutes
        clock.now += 0.1
        bar.update(1, 3, "epsilon 0.50 of 2")
    said = lines(capsys)
    assert [line["done"] for line in said] == [1] * 4
    assert all(isinstance(line["left_s"], int) for line in said)
    bar.update(3, 3, "epsilon 1.50 of 2")
    (last,) = lines(capsys)
    assert (last["done"], last["total"], last["left_s"]) == (3, 3, 0)


@pytest.mark.parametrize("quiet", [True, False])
def test_quiet_says_nothing(quiet: bool, capsys: pytest.CaptureFixture[str]) -> None:
    with render.progress(Settings(quiet=quiet, json=True), "sealing") as bar:
        bar.update(1, 2, "x")
    assert bool(lines(capsys)) != quiet
