"""The generated tasks: their own solutions pass, no two are alike, and they are always the same."""

from __future__ import annotations

from collections.abc import Callable

from appliance.flows.examination import examiner
from appliance.isolation.examiner import Task
from appliance.jobs import micro_tasks
from appliance.jobs.benchmark import read_benchmark


def test_solutions_pass_and_tasks_differ(stress_count: Callable[[int, int], int]) -> None:
    tasks = micro_tasks.generate(600)
    assert len({task["prompt"] for task in tasks}) == 600
    assert read_benchmark("micro:600").sha256 == read_benchmark("micro:600").sha256
    with examiner() as judge:
        for task in tasks[:: stress_count(60, 1)]:
            fields = {"prelude": "", "test": task["test"], "entry_point": task["entry_point"], "seconds": 60.0}
            right = Task(code=task["prompt"] + task["canonical_solution"], **fields)
            assert judge.examine(right) == "passed"
            wrong = Task(code=task["prompt"] + " None\n", **fields)
            assert judge.examine(wrong) == "failed"
